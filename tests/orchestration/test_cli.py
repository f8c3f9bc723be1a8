"""The command's exit codes and messages: one line that names the place and the cure, and no traceback."""

import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyarrow.dataset
import pytest
import yaml
from PIL import Image

from motet.orchestration import cli
from motet.tokenizers.registry import find

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "examples/corpus"


class Told(NamedTuple):
    code: int
    out: str
    err: str


Motet = Callable[..., Told]


@pytest.fixture
def motet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Motet:
    """Run the command in this process."""

    def call(*args: str | Path) -> Told:
        monkeypatch.setattr(sys, "argv", ["motet", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Told(end.value.code, told.out, told.err)

    return call


def wrong(told: Told, *parts: str) -> None:
    """The user was told what is wrong: exit 2, one line, all of `parts` in it, no traceback."""
    assert told.code == 2, told
    lines = [line for line in told.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("motet: "), told.err
    assert "Traceback" not in told.err
    for part in parts:
        assert part in lines[0], told.err


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    lines = (CORPUS / "text/speeches.jsonl").read_text("utf-8").splitlines()[:2]
    find("bpe").fit([json.loads(line)["text"].encode() for line in lines], folder / "bpe", {"vocabulary": 300})
    return folder / "bpe"


@pytest.fixture
def config(tmp_path: Path, bpe: Path) -> Path:
    """A sound configuration: three real speeches."""
    lines = (CORPUS / "text/speeches.jsonl").read_text("utf-8").splitlines()[:3]
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return write(
        tmp_path / "corpus.yaml",
        {
            "corpus": [{"name": "speeches", "format": "text", "path": "text.jsonl"}],
            "tokenizers": {"text": {"use": "bpe", "path": str(bpe)}},
        },
    )


def write(path: Path, settings: object) -> Path:
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_done_is_0_and_done_again_does_nothing(motet: Motet, config: Path, tmp_path: Path) -> None:
    first = motet("tokenize", config, "--out", tmp_path / "tokens", "--json")
    assert first.code == 0 and json.loads(first.out)["documents"] == 3
    again = motet("tokenize", config, "--out", tmp_path / "tokens", "--json")
    assert again.code == 0 and json.loads(again.out)["partitions_done_now"] == 0
    assert motet("verify", tmp_path / "tokens").code == 0


def test_unknown_key_names_the_nearest(motet: Motet, config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text("utf-8"))
    settings["max_reject_fractoin"] = 0.5
    write(config, settings)
    told = motet("tokenize", config, "--out", tmp_path / "tokens")
    wrong(told, str(config), "max_reject_fractoin", "did you mean 'max_reject_fraction'?")


def test_unknown_key_of_a_tokenizer(motet: Motet, config: Path, tmp_path: Path) -> None:
    told = motet("tokenize", config, "--out", tmp_path / "t", "--set", "tokenizers.text.pth=x")
    wrong(told, "pth", "did you mean 'path'?")


def test_unknown_key_given_by_set_in_training(motet: Motet, tmp_path: Path) -> None:
    settings = {
        "data": {"paths": ["tokens"], "sequence": 64},
        "model": {"dim": 32, "layers": 1, "heads": 2},
        "steps": 1,
        "rows": 1,
        "micro_rows": 1,
    }
    train = write(tmp_path / "train.yaml", settings)
    told = motet("train", train, "--out", tmp_path / "run", "--set", "model.layer=2")
    wrong(told, "model.layer", "did you mean 'layers'?")
    told = motet("train", train, "--out", tmp_path / "run")
    wrong(told, str(tmp_path / "tokens"))


def test_missing_configuration(motet: Motet, tmp_path: Path) -> None:
    wrong(motet("tokenize", tmp_path / "none.yaml", "--out", tmp_path / "t"), "none.yaml", "no such configuration file")


def test_broken_yaml_names_the_line(motet: Motet, tmp_path: Path) -> None:
    (tmp_path / "corpus.yaml").write_text("corpus:\n  - {name: a\nseed: 0\n", encoding="utf-8")
    wrong(motet("tokenize", tmp_path / "corpus.yaml", "--out", tmp_path / "t"), "corpus.yaml, line 3")


def test_missing_corpus(motet: Motet, config: Path, tmp_path: Path) -> None:
    told = motet("tokenize", config, "--out", tmp_path / "t", "--set", "corpus.0.path=elsewhere/text.jsonl")
    wrong(told, "corpus.0", "speeches", "elsewhere/text.jsonl", "does not exist")
    assert not (tmp_path / "t").exists()


def test_unknown_tokenizer(motet: Motet, config: Path, tmp_path: Path) -> None:
    told = motet("tokenize", config, "--out", tmp_path / "t", "--set", "tokenizers.text.use=bpee")
    wrong(told, "use", "'bpee'", "did you mean 'bpe'?")


def test_tokenizer_whose_weights_are_elsewhere(motet: Motet, config: Path, tmp_path: Path) -> None:
    told = motet("tokenize", config, "--out", tmp_path / "t", "--set", "tokenizers.text.path=/nowhere/bpe")
    wrong(told, "/nowhere/bpe", "does not exist", "motet tokenizer fit bpe")


def test_output_that_holds_something_else(motet: Motet, config: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    wrong(motet("tokenize", config, "--out", tmp_path / "full"), "--out", str(tmp_path / "full"), "empty folder")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_output_that_cannot_be_written(motet: Motet, config: Path, tmp_path: Path) -> None:
    wrong(motet("tokenize", config, "--out", config / "tokens"), "--out", str(config / "tokens"), "cannot be written")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["tokeniz"], ["'tokeniz'", "tokenize"]),
        (["tokenizer", "fitt"], ["'fitt'", "fit"]),
        (["tokenize", "c.yaml"], ["--out"]),
        (["tokenize", "c.yaml", "--out", "t", "--engine", "spark"], ["--engine", "local"]),
        (["tokenize", "c.yaml", "--out", "t", "--workers", "0"], ["--workers"]),
        (["stats", "t", "--sequense", "8"], ["--sequense", "--sequence"]),
        (["stats", "no-such-dataset"], ["no-such-dataset"]),
        (["verify", "no-such-dataset"], ["no-such-dataset"]),
        (["view", "no-such-dataset"], ["no-such-dataset"]),
        (["tokenizer", "describe", "vqgann"], ["'vqgann'", "did you mean 'vqgan'?"]),
        (["tokenizer", "fit", "bpe", "--samples", "nowhere", "--out", "b"], ["--samples", "nowhere"]),
        (["run", "no-such.yaml", "--out", "t"], ["no-such.yaml"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words_on_the_command_line(
    motet: Motet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong(motet(*args), *parts)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_nothing_asked_shows_the_help(motet: Motet) -> None:
    assert "Usage: motet" in "".join(motet()[1:])


def test_debug_shows_the_traceback(motet: Motet, tmp_path: Path) -> None:
    told = motet("tokenize", tmp_path / "none.yaml", "--out", "t", "--debug", "--set", "a=https://me:word@host/x")
    assert told.code == 1 and "Traceback" in told.err and "no such configuration file" in told.err


def test_a_flipped_byte_is_named(motet: Motet, config: Path, tmp_path: Path) -> None:
    assert motet("tokenize", config, "--out", tmp_path / "tokens").code == 0
    [shard] = (tmp_path / "tokens/shards").glob("*.arrow")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    told = motet("verify", tmp_path / "tokens")
    assert told.code == 1 and shard.name in told.out
    as_json = motet("verify", tmp_path / "tokens", "--json")
    assert as_json.code == 1 and shard.name in json.loads(as_json.out)["problems"][0]


@pytest.fixture
def pictures(tmp_path: Path, bpe: Path) -> Path:
    """Twenty real pictures, of which one is a PNG cut off in the middle, and a small VQ-GAN."""
    from diffusers.models import VQModel

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    small = {"block_out_channels": (8, 8, 8), "latent_channels": 4, "num_vq_embeddings": 16, "norm_num_groups": 4}
    VQModel(**blocks, **small, sample_size=32).save_pretrained(tmp_path / "vqgan")
    folder = tmp_path / "pictures"
    folder.mkdir()
    *sound, last = sorted((CORPUS / "images/emoji").glob("*.webp"))[:20]
    for file in sound:
        shutil.copy(file, folder)
    png = io.BytesIO()
    Image.open(last).save(png, "PNG")
    (folder / "truncated.png").write_bytes(png.getvalue()[: len(png.getvalue()) // 2])
    return write(
        tmp_path / "pictures.yaml",
        {
            "corpus": [{"name": "pictures", "format": "folder", "path": "pictures", "modality": "image"}],
            "tokenizers": {
                "text": {"use": "bpe", "path": str(bpe)},
                "image": {"use": "vqgan", "path": "vqgan"},
            },
        },
    )


def test_too_many_rejects_is_3_and_all_else_is_there(motet: Motet, pictures: Path, tmp_path: Path) -> None:
    told = motet("tokenize", pictures, "--out", tmp_path / "tokens")
    assert told.code == 3 and "1 of 20 samples were rejected" in told.err and "truncated-image" in told.out
    [reject] = pyarrow.dataset.dataset(tmp_path / "tokens/rejects", format="arrow").to_table().to_pylist()
    assert reject["reason"] == "truncated-image" and "truncated.png" in json.dumps(reject)
    assert motet("verify", tmp_path / "tokens").code == 0
    stats = json.loads(motet("stats", tmp_path / "tokens", "--json").out)
    assert "truncated-image" in json.dumps(stats)
    allowed = motet("tokenize", pictures, "--out", tmp_path / "tokens", "--set", "max_reject_fraction=0.1")
    assert allowed.code == 0


def test_rejects_are_shown_and_their_bytes_written(motet: Motet, pictures: Path, tmp_path: Path) -> None:
    out, kept = tmp_path / "tokens", tmp_path / "kept"
    (tmp_path / "pictures/\x1b[31m [b]red.png").write_bytes(b"no picture")
    told = motet("tokenize", pictures, "--out", out)
    assert told.code == 3 and f"`motet rejects {out}` shows them" in told.err and "pictures 2 of 21" in told.err
    told = motet("rejects", out)
    assert told.code == 0 and "2 samples rejected" in told.out and "\x1b" not in told.out
    assert "truncated.png" in told.out and "[b]red" in told.out.replace("\n", "")
    wrong(motet("rejects", out, "--save", kept), "--save", "keep_rejected: true", "--retry-rejects")
    again = motet("tokenize", pictures, "--out", out, "--retry-rejects", "--set", "keep_rejected=true", "--json")
    assert again.code == 3 and json.loads(again.out)["over_limit"] == ["pictures"]
    told = motet("rejects", out, "--reason", "truncated-image", "--save", kept)
    assert [file.read_bytes() for file in kept.iterdir()] == [(tmp_path / "pictures/truncated.png").read_bytes()]
    rows = [json.loads(line) for line in motet("rejects", out, "--json").out.splitlines()]
    assert {row["reason"] for row in rows} == {"truncated-image", "not-an-image"}
    assert base64.b64decode(rows[0]["parts"][0]["bytes"]) == b"no picture"
    assert "no sample was rejected for that" in motet("rejects", out, "--source", "other").out
    wrong(motet("rejects", tmp_path / "nothing"), "holds no token dataset")


def test_what_was_out_of_reach_is_tried_again_by_a_flag_that_is_named(
    motet: Motet, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures/metadata.jsonl").write_text('{"file_name": "late.webp"}\n{"file_name": "truncated.png"}\n')
    for command in (("tokenize", pictures, "--out", tmp_path / "tokens"), ("rejects", tmp_path / "tokens")):
        told = motet(*command).out.replace("\n", " ")
        assert told.count("--retry-rejects") == 1 and "missing-file" in told.split("--retry-rejects")[0]
    next((tmp_path / "pictures").glob("*.webp")).rename(tmp_path / "pictures/late.webp")
    told = motet("tokenize", pictures, "--out", tmp_path / "tokens", "--retry-rejects")
    assert "1 documents, 1 samples" in told.out and "--retry-rejects" not in told.out


def test_a_job_of_which_nothing_comes_ends_with_3(motet: Motet, bpe: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "some words"}\n' * 3000)
    settings = {
        "corpus": [{"name": "a", "format": "text", "path": "a.jsonl"}],
        "tokenizers": {"text": {"use": "bpe", "path": str(bpe)}},
        "partition_bytes": 8000,
    }
    told = motet("tokenize", write(tmp_path / "a.yaml", settings), "--out", tmp_path / "out")
    assert told.code == 3 and "a: all " in told.err and '{"body": "some words"}' in told.err
    assert f"`motet rejects {tmp_path / 'out'}` shows more" in told.err
    assert "no column 'text'" in motet("rejects", tmp_path / "out").out.replace("\n", "")


def test_list_and_describe(motet: Motet) -> None:
    entries = {entry["name"]: entry for entry in json.loads(motet("tokenizer", "list", "--json").out)}
    assert {"bpe", "vqgan", "vae", "encodec", "melrvq", "units"} <= set(entries)
    assert entries["bpe"] == {
        "name": "bpe",
        "target": "motet.tokenizers.text.bpe:BPE",
        "distribution": "motet-tokenizers",
        "reason": None,
    }
    described = motet("tokenizer", "describe", "bpe")
    assert described.code == 0 and described.out.startswith("bpe: text") and "path: " in described.out


def test_the_same_through_a_real_process(config: Path, tmp_path: Path) -> None:
    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        motet = Path(sys.executable).with_name("motet")
        return subprocess.run([str(motet), *map(str, args)], capture_output=True, text=True, cwd=tmp_path)

    done = run("tokenize", config, "--out", "tokens", "--workers", "2")
    assert done.returncode == 0 and "3 documents" in done.stdout
    missing = run("tokenize", "none.yaml", "--out", "t")
    assert missing.returncode == 2 and missing.stderr == "motet: none.yaml: no such configuration file\n"
    assert run("tokeniz").returncode == 2


def test_training_tells_a_program_json_alone_and_damage_is_1(motet: Motet, config: Path, tmp_path: Path) -> None:
    assert motet("tokenize", config, "--out", tmp_path / "tokens").code == 0
    settings = {
        "data": {"paths": ["tokens"], "sequence": 64, "holdout": 0.0},
        "model": {"dim": 32, "layers": 1, "heads": 2},
        **{"steps": 2, "rows": 2, "micro_rows": 2, "threads": 1},
    }
    train = write(tmp_path / "train.yaml", settings)
    done = motet("train", train, "--out", tmp_path / "run", "--json")
    told = json.loads(done.out)
    assert done.code == 0 and (told["step"], told["finished"], told["resumed_from"]) == (2, True, 0)
    assert told["tokens"] == json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["tokens"]

    [shard] = (tmp_path / "tokens/shards").glob("*.arrow")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    damaged = motet("train", train, "--out", tmp_path / "other")
    assert damaged.code == 1 and shard.name in damaged.err and "Traceback" not in damaged.err


def test_what_gc_would_delete_is_told_and_stays(motet: Motet, config: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    assert motet("tokenize", config, "--out", tokens).code == 0
    [shard] = (tokens / "shards").glob("*.arrow")
    stray = shutil.copy(shard, tokens / "shards/speeches-00007-0123456789abcdef.arrow")
    assert "speeches-00007" in motet("verify", tokens).out
    told = motet("gc", tokens, "--dry-run")
    assert stray.name in told.out and "would be deleted" in told.out and stray.exists()
    as_json = json.loads(motet("gc", tokens, "--dry-run", "--json").out)
    assert as_json["deleted"] == {} and any(stray.name in path for path in as_json["orphans"]) and stray.exists()
    gone = json.loads(motet("gc", tokens, "--json").out)
    assert gone["deleted"] == as_json["orphans"] and not stray.exists() and shard.exists()
