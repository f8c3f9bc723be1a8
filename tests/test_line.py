"""The whole line on real data through the command: fit, tokenize, statistics, view, verify, train, evaluate, generate."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples/corpus"
MOTET = Path(sys.executable).with_name("motet")


def ran(*args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command, with the example plug-in in reach."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "examples/custom_tokenizer/src")}
    done = subprocess.run([str(MOTET), *map(str, args)], capture_output=True, text=True, env=environment)
    assert done.returncode == code, f"motet {' '.join(map(str, args))}\n{done.stdout}\n{done.stderr}"
    return done


def motet(*args: str | Path) -> str:
    """Run the command; its standard output."""
    return ran(*args).stdout


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small slice of the bundled corpus, tokenized both ways with tokenizers fitted on it."""
    folder = tmp_path_factory.mktemp("line")
    for part, kind, count in (("images/emoji", "image", 60), ("speech/prompts", "speech", 40)):
        to = folder / kind
        to.mkdir()
        rows = (CORPUS / part / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        (to / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        for row in rows:
            name = json.loads(row)["file_name"]
            (to / name).write_bytes((CORPUS / part / name).read_bytes())
    texts = (CORPUS / "text/speeches.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    (folder / "text.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    motet(
        "tokenizer",
        "fit",
        "bpe",
        "--samples",
        folder / "text.jsonl",
        "--out",
        folder / "bpe",
        "--set",
        "vocabulary=512",
    )
    motet("tokenizer", "fit", "melrvq", "--samples", folder / "speech", "--out", folder / "melrvq", "--set", "size=64")
    for name, image in (("codes", "vqgan"), ("latents", "vae")):
        config = {
            "corpus": [
                {"name": "pictures", "format": "folder", "path": "image", "modality": "image"},
                {"name": "talk", "format": "folder", "path": "speech", "modality": "speech"},
                {"name": "text", "format": "text", "path": "text.jsonl", "column": "text"},
            ],
            "tokenizers": {
                "text": {"use": "bpe", "path": "bpe"},
                "image": {"use": image, "path": str(ROOT / "examples/demo/weights" / image)},
                "speech": {"use": "melrvq", "path": "melrvq"},
            },
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
        motet("tokenize", folder / f"{name}.yaml", "--out", folder / name)
    return folder


@pytest.mark.parametrize("name", ["codes", "latents"])
def test_what_came_out_is_seen_and_verified(line: Path, name: str) -> None:
    told = json.loads(motet("stats", line / name, "--json"))
    assert told["documents"] == 60 + 40 + 6
    motet("stats", line / name, "--html", line / f"{name}-stats.html")
    motet("view", line / name, "--html", line / f"{name}-view.html")
    page = (line / f"{name}-view.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "data:audio/wav;base64," in page
    motet("verify", line / name)


@pytest.fixture(scope="module", params=[("codes", "chameleon"), ("latents", "transfusion")], ids="-".join)
def trained(line: Path, request: pytest.FixtureRequest) -> tuple[str, str, Path, int]:
    """A dataset, a kind of model, the folder of its run, and the tokens that were planned for it."""
    name, kind = request.param
    run = line / f"run-{name}"
    config = {
        "data": {"paths": [name], "sequence": 256, "holdout": 0.1, "guidance_dropout": 0.2 * (kind == "transfusion")},
        "model": {"dim": 64, "layers": 2, "heads": 2},
        "objective": {"kind": kind, "diffusion": "flow"},
        "optimizer": {"lr": 0.003, "warmup": 5},
        "steps": 30,
        "rows": 4,
        "micro_rows": 4,
        "checkpoint_every": 20,
        "threads": 1,
    }
    (line / f"{kind}.yaml").write_text(yaml.safe_dump(config))
    course = json.loads(motet("plan", line / f"{kind}.yaml", "--json"))
    motet("train", line / f"{kind}.yaml", "--out", run)
    return name, kind, run, course["run_tokens"]


def test_a_model_learns_and_writes_draws_and_speaks(trained: tuple[str, str, Path, int], line: Path) -> None:
    name, kind, run, planned = trained
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["tokens"] == planned
    why = json.loads(motet("why", run, "7", "--json"))
    assert why["batch"] == rows[7]["batch"] and {p["source"] for p in why["pieces"]} <= {"pictures", "talk", "text"}
    motet("view", line / name, why["pieces"][0]["sample"], "--html", line / "seen.html")
    losses = [row["loss"] for row in rows]
    assert len(losses) == 30 and sum(losses[-5:]) < sum(losses[:5])
    told = json.loads(motet("evaluate", run, "--json"))
    assert set(told["modalities"]) == {"text", "speech"} | ({"image"} if kind == "chameleon" else set())
    assert all(
        m["loss"] < m["start"]
        for m in [*told["modalities"].values(), *([told["diffusion"]] if "diffusion" in told else [])]
    )
    motet("generate", run, "--text", "a red apple", "--to", "image", "--out", line / f"{name}.png")
    assert Image.open(line / f"{name}.png").size == (64, 64)
    motet("generate", run, "--text", "Welcome.", "--to", "speech", "--out", line / f"{name}.wav")
    assert soundfile.info(line / f"{name}.wav").frames > 0
    picture = next((line / "image").glob("*.webp"))
    motet("generate", run, "--image", picture, "--to", "text", "--out", line / f"{name}.txt")
    assert (line / f"{name}.txt").exists()


def test_spans_come_one_after_another(trained: tuple[str, str, Path, int], line: Path) -> None:
    name, kind, run, _ = trained
    story = line / f"{name}-story"
    asked = ("generate", run, "--text", "a red apple", "--seconds", "0.5", "--words", "8", "--steps", "3")
    done = ran(*asked, "--to", "image,text,speech", "--guidance", "2", "--out", story)
    assert ("without data.guidance_dropout" in done.stderr) == (kind == "chameleon")
    assert sorted(path.name for path in story.iterdir()) == ["01-image.png", "02-text.txt", "03-speech.wav"]
    assert Image.open(story / "01-image.png").size == (64, 64) and soundfile.info(story / "03-speech.wav").frames > 0
    assert re.search(r"drew [\d,]+ tokens .*in .* s: [\d,]+ tokens/s", done.stdout)
    assert ("with 3 denoising calls" in done.stdout) == (kind == "transfusion")
    told = motet(*asked, "--to", "any", "--spans", "2", "--out", line / f"{name}-free")
    assert 1 <= told.count(f"wrote {line / f'{name}-free'}") == len(list((line / f"{name}-free").iterdir())) <= 2
    rows = [{"parts": [{"text": "sun"}], "to": to} for to in ("image", "speech,text", "any")]
    (line / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    motet("generate", run, "--prompts", line / "prompts.jsonl", *asked[4:], "--out", line / f"{name}-many")
    many = {str(path.relative_to(line / f"{name}-many")) for path in (line / f"{name}-many").rglob("*.*")}
    assert {"000.png", "001/01-speech.wav", "001/02-text.txt", "index.html"} < many


def test_what_cannot_follow_is_refused(trained: tuple[str, str, Path, int], line: Path) -> None:
    out = line / "refused"
    asked = ("generate", trained[2], "--text", "ten words " * 200, "--out", out)
    known = "to: imgae: the model does not know it; it knows image, speech, text, and any"
    assert known in ran(*asked, "--to", "text,imgae", code=2).stderr
    assert "the model knows rows of 256 (data.sequence)" in ran(*asked, "--to", "image", code=2).stderr
    assert not out.exists()


def test_a_plugged_in_modality_goes_the_whole_way(line: Path) -> None:
    use = "motet_series.series:Series"
    data = ROOT / "examples/custom_tokenizer/data"
    motet("tokenizer", "check", use, "--samples", data)
    config = {
        "corpus": [{"name": "weather", "format": "folder", "path": str(data), "modality": "series"}],
        "tokenizers": {"text": {"use": "bpe", "path": "bpe"}, "series": {"use": use}},
    }
    (line / "weather.yaml").write_text(yaml.safe_dump(config))
    motet("tokenize", line / "weather.yaml", "--out", line / "weather")
    told = json.loads(motet("stats", line / "weather", "--json"))
    assert told["documents"] == len(list(data.glob("*.csv"))) and told["tokens"]["series"] > 4000
    motet("view", line / "weather", "--html", line / "weather.html")
    train = {
        "data": {"paths": ["weather"], "sequence": 512, "holdout": 0.2},
        "model": {"dim": 32, "layers": 2, "heads": 2},
        "optimizer": {"lr": 0.01},
        "steps": 8,
        "rows": 4,
        "micro_rows": 4,
        "threads": 1,
    }
    (line / "weather-train.yaml").write_text(yaml.safe_dump(train))
    motet("train", line / "weather-train.yaml", "--out", line / "weather-run")
    losses = [
        json.loads(row)["losses"]["series"] for row in (line / "weather-run/metrics.jsonl").read_text().splitlines()
    ]
    assert losses[-1] < losses[0]
    motet("generate", line / "weather-run", "--text", "wind in Seattle", "--to", "series", "--out", line / "wind.csv")
    assert (line / "wind.csv").read_text().strip()
