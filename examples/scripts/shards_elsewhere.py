"""The token dataset without motet: its shards are Arrow files, which DuckDB, Polars, pandas and `datasets` read.

    python examples/scripts/shards_elsewhere.py OUT     (after tokenize_and_look.py OUT; needs duckdb, polars, pandas, datasets)

Some 5 seconds on one core. Nothing of motet is imported here. docs/format.md says what the columns mean.
"""

import json
import sys
from pathlib import Path

import datasets
import duckdb
import pandas
import polars
import pyarrow as pa

out = Path(sys.argv[1])
shards = sorted((out / "tokens/shards").glob("*.arrow"))

print("Polars, lazily: tokens of each source")
lazy = polars.scan_ipc(shards).with_columns(polars.col("span_end").list.last().alias("n"))
totals = lazy.group_by(polars.col("source").cast(polars.String)).agg(polars.len().alias("documents"), polars.sum("n"))
print(totals.sort("source").collect())

print("DuckDB, through Arrow: the longest document of each source")
tables = [pa.ipc.open_file(pa.memory_map(str(shard))).read_all() for shard in shards]  # mapped, nothing is copied
documents = pa.concat_tables([each.select(["sample_id", "source", "tokens", "span_end"]) for each in tables])
query = "SELECT source::VARCHAR AS source, max(len(tokens)) AS longest, arg_max(hex(sample_id), len(tokens)) AS sample"
print(duckdb.sql(f"{query} FROM documents GROUP BY source ORDER BY source"))

print("pandas: the spans of one captioned picture; a shard's schema says what its numbers of modalities mean")
emoji = next(shard for shard in shards if shard.name.startswith("emoji"))
about = json.loads(pa.ipc.open_file(pa.memory_map(str(emoji))).schema.metadata[b"motet"])
document, begin = pandas.read_feather(emoji).iloc[0], 0
for end, modality, shape in zip(document.span_end, document.span_modality, document.span_shape, strict=True):
    name = about["modalities"][modality]
    tokenizer = about["tokenizers"][name]
    ids = document.tokens[begin:end]
    print(
        f"  {name}: tokens {begin}-{end} in a grid of {shape.tolist()}, {tokenizer['name']} of {tokenizer['codebooks']}: {ids[:6]} ..."
    )
    begin = end

print("datasets: rows for a training loop that knows nothing of motet")
files = [str(shard) for shard in shards if "speeches" in shard.name]
rows = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(out / "datasets-cache"))
for batch in rows.select_columns(["tokens"]).with_format("torch").shuffle(seed=0).take(2):
    print(f"  {batch['tokens'].dtype}, {len(batch['tokens'])} ids: {batch['tokens'][:8].tolist()} ...")
