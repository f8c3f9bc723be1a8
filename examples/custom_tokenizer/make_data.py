"""How data/ was made: weather.csv of the npm package vega-datasets 2.11.0 -> one series for each city, year and quantity.

The measurements are those of the National Oceanic and Atmospheric Administration of the United States (public domain).

    npm pack vega-datasets@2.11.0 && tar xzf vega-datasets-2.11.0.tgz
    python make_data.py package/data/weather.csv
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

QUANTITIES = {
    "temp_max": "highest temperature of each day in degrees Celsius",
    "wind": "mean wind speed of each day in metres per second",
}


def main(source: Path, out: Path) -> None:
    """Write one CSV file per series and their captions."""
    series: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    with open(source, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for quantity in QUANTITIES:
                series[row["location"], row["date"][:4], quantity].append((row["date"], row[quantity]))
    out.mkdir(exist_ok=True)
    captions = []
    for (city, year, quantity), rows in sorted(series.items()):
        name = f"{city.replace(' ', '-').lower()}-{year}-{quantity}.csv"
        (out / name).write_text("\n".join(["date,value", *(",".join(row) for row in rows), ""]), encoding="utf-8")
        captions.append({"file_name": name, "text": f"{city}, {year}: {QUANTITIES[quantity]}"})
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in captions), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "data")
