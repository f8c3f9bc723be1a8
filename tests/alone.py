"""Each room works alone: installed without extras and without the tools of development, it does its work.

    wheels of the rooms --one after the other, from below--> one new environment --after each--> what the room is for

`make alone` runs this file. It calls itself with the new environment's Python, once for each check. What a room needs from
the rooms below lies in one folder of work: tokenizers, then tokens, then a model. Everything is made in `.alone` and deleted
at the end.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".alone"
CORPUS, WEIGHTS = ROOT / "examples/corpus", ROOT / "examples/demo/weights"
ROOMS = ("tokenizers", "pipeline", "trainer", "orchestration")
EXTRA = {"ray": "ray", "ray_train": "ray", "beam": "apache_beam"}
"""Modules that an extra is for, by the last part of their name, and what it brings."""
CONFIG = {
    "corpus": [
        {"name": "emoji", "format": "folder", "path": "emoji", "modality": "image"},
        {"name": "prompts", "format": "folder", "path": "prompts", "modality": "speech"},
        {"name": "speeches", "format": "text", "path": "speeches.jsonl"},
    ],
    "tokenizers": {
        "text": {"use": "bpe", "path": "bpe"},
        "image": {"use": "vqgan", "path": str(WEIGHTS / "vqgan")},
        "speech": {"use": "melrvq", "path": "melrvq"},
    },
}
"""30 pictures, 20 recordings and 2 texts of the bundled corpus, in the folder of work."""
TRAIN = {
    "data": {"paths": ["tokens"], "sequence": 256, "holdout": 0.1},
    "model": {"dim": 32, "layers": 2, "heads": 2},
    "steps": 4,
    "rows": 2,
    "micro_rows": 2,
    "checkpoint_every": 2,
}


def imports(room: str) -> None:
    """Every module of the room can be imported, but those that an extra is for: its libraries are not there."""
    found = importlib.import_module(f"motet.{room}")
    names = [found.__name__, *(m.name for m in pkgutil.walk_packages(found.__path__, f"{found.__name__}."))]
    for name in names:
        extra = EXTRA.get(name.rpartition(".")[2])
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (extra, "triton"):  # Triton comes with torch, where there is one
                raise
        else:
            assert extra is None, f"{name}: {extra} is here, which only an extra should bring"
    print(f"{len(names)} modules")


def tokenizers() -> None:
    """Fit a BPE and a mel-RVQ; encode and decode a text, a recording and a picture."""
    from motet.tokenizers.registry import available, build, find

    broken = [entry for entry in available() if entry.reason]
    assert not broken, broken
    lines = (CORPUS / "text/speeches.jsonl").read_text("utf-8").splitlines()[:2]
    texts = [json.loads(line)["text"].encode() for line in lines]
    sounds = [file.read_bytes() for file in sorted((CORPUS / "speech/prompts").glob("*.ogg"))[:20]]
    picture = next((CORPUS / "images/emoji").glob("*.webp")).read_bytes()
    find("bpe").fit(texts, Path("bpe"), {"vocabulary": 512})
    find("melrvq").fit(sounds, Path("melrvq"), {"size": 32, "codebooks": 2})
    for modality, data in (("text", texts[0]), ("speech", sounds[0]), ("image", picture)):
        tokenizer = build(CONFIG["tokenizers"][modality], Path.cwd(), modality)
        sample = tokenizer.load(data)
        (tokens,) = tokenizer.encode([sample])
        back = tokenizer.dump(tokenizer.decode([tokens])[0])
        assert len(tokens) and back and (modality != "text" or back == data), modality
        print(f"{modality}: {len(data):,} bytes, {len(tokens):,} tokens")


def pipeline() -> None:
    """Tokenize a small corpus, verify it, tell its statistics, and write both pages."""
    from motet.pipeline.dataset import stats_page, view
    from motet.pipeline.dataset.statistics import statistics
    from motet.pipeline.dataset.tokenizers import dataset_tokenizers
    from motet.pipeline.dataset.verify import Verification
    from motet.pipeline.job.config import TokenizeConfig
    from motet.pipeline.job.job import tokenize_corpus

    result = tokenize_corpus(TokenizeConfig.model_validate(CONFIG), Path.cwd(), "tokens", workers=2)
    manifest = result.manifest
    assert (manifest.documents, result.rejected) == (52, 0), (manifest.documents, manifest.rejects())
    check = Verification(manifest)
    assert not [problem for _, problems in check.shards() for problem in problems] + check.whole()
    assert "<svg" in stats_page.page(manifest, statistics(manifest))
    decoders = dataset_tokenizers(manifest, list(CONFIG["tokenizers"]))
    assert "<img" in view.page(manifest, view.spread(manifest, 6), decoders)
    print(f"{manifest.documents} documents, {sum(statistics(manifest).tokens.values()):,} tokens")


def trainer() -> None:
    """Train a small model for four steps and open its checkpoint."""
    from motet.trainer.config import TrainConfig
    from motet.trainer.run.metrics import curves, read
    from motet.trainer.run.train import train
    from motet.trainer.use.trained import Trained

    summary = train(TrainConfig.model_validate(TRAIN), "run")
    assert summary["finished"] and curves(Path("run")).exists()
    losses = [row["loss"] for row in read(Path("run"))]
    assert Trained.open("run").of_run().state.step == 4 and losses[-1] < losses[0], losses
    print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}")


CHECKS = {check.__name__: check for check in (imports, tokenizers, pipeline, trainer)}
COMMANDS: tuple[tuple[str, int, str], ...] = (
    ("--help", 0, "Corpus to shards"),
    ("tokenize tokenize.yaml --out shards --engine local", 0, "52 documents"),
    ("tokenize tokenize.yaml --out ray --engine ray", 2, "install motet-pipeline[ray]"),
    ("stats shards --html stats.html", 0, ""),
    ("train train.yaml --out model", 0, "4 steps"),
    ("train train.yaml --out ray --set launcher=ray", 2, "install motet-trainer[ray]"),
    ("generate model --text apple --to image --out apple.png", 0, "apple.png"),
    ("sheet model --count 2 --out sheet.png", 0, "sheet.png"),
)
"""What is typed in the folder of work, the exit code, and what is said among other things."""


class Alone:
    """The environment, the folder of work, and the count of what passed and failed."""

    def __init__(self) -> None:
        self.bin, self.work, self.wheels = PLACE / "env/bin", PLACE / "work", PLACE / "wheels"
        self.passed = self.failed = 0
        named = {"PYTHONPATH", "VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT"}
        self.environment = {name: value for name, value in os.environ.items() if name not in named}

    def prepare(self) -> None:
        """An empty environment, the rooms' wheels, and a folder with a small corpus and two configurations."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        constraints = project["tool"]["uv"]["constraint-dependencies"]
        for part in ("images/emoji", "speech/prompts"):
            folder = self.work / Path(part).name
            folder.mkdir(parents=True)
            rows = (CORPUS / part / "metadata.jsonl").read_text("utf-8").splitlines()[: 30 if "emoji" in part else 20]
            (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
            for row in rows:
                shutil.copy(CORPUS / part / json.loads(row)["file_name"], folder)
        texts = (CORPUS / "text/speeches.jsonl").read_text("utf-8").splitlines()[:2]
        (self.work / "speeches.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
        (self.work / "tokenize.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")  # JSON is YAML
        (self.work / "train.yaml").write_text(json.dumps(TRAIN | {"data": TRAIN["data"] | {"paths": ["shards"]}}))
        (PLACE / "constraints.txt").write_text("\n".join(constraints) + "\n", encoding="utf-8")
        self.uv("build", "--all-packages", "--wheel", "--out-dir", self.wheels)
        self.uv("venv", "--python", sys.executable, self.bin.parent)

    def install(self, room: str) -> None:
        """The room's wheel, with what it depends on; the rooms below are there."""
        begin = time.monotonic()
        (wheel,) = self.wheels.glob(f"motet_{room}-*.whl")
        self.uv("pip", "install", "--python", self.bin / "python", "--constraints", PLACE / "constraints.txt", wheel)
        print(f"{room}: installed in {time.monotonic() - begin:.0f} s", flush=True)

    def uv(self, *words: str | Path) -> None:
        """Run the uv of the environment that runs this file, in the repository's root."""
        command = [Path(sys.executable).with_name("uv"), *words, "--quiet"]
        subprocess.run(command, cwd=ROOT, env=self.environment, check=True)

    def check(self, what: str, command: list[str | Path], code: int = 0, said: str = "") -> None:
        """Run a command in the folder of work; it ends with `code` and says `said`."""
        begin = time.monotonic()
        done = subprocess.run(command, cwd=self.work, env=self.environment, capture_output=True, text=True)
        told = done.stdout + done.stderr
        if done.returncode == code and said in told:
            self.passed += 1
            print(f"{what}: passed in {time.monotonic() - begin:.0f} s", flush=True)
        else:
            self.failed += 1
            print(f"{what}: failed: exit code {done.returncode}, not {code}, or not {said!r}:\n{told}", flush=True)

    def room(self, room: str) -> None:
        """Install a room and do its work."""
        self.install(room)
        python: list[str | Path] = [self.bin / "python", "-I", __file__]
        self.check(f"{room}: imports", [*python, "imports", room])
        if room in CHECKS:
            self.check(f"{room}: work", [*python, room])
        else:
            for line, code, said in COMMANDS:
                self.check(f"motet {line}", [self.bin / "motet", *line.split()], code, said)


def main() -> int:
    """Every room in turn; 1 if a check failed."""
    alone = Alone()
    shutil.rmtree(PLACE, ignore_errors=True)
    try:
        alone.prepare()
        for room in ROOMS:
            alone.room(room)
    finally:
        shutil.rmtree(PLACE, ignore_errors=True)
    print(f"{alone.passed} passed, {alone.failed} failed")
    return 1 if alone.failed else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        CHECKS[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main())
