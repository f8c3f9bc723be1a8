"""A trained model is the same wherever it lies, and needs nothing but what it brings."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from motet.core.errors import UserError
from motet.core.hashing import content_hash
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers.registry import find
from motet.trainer.config import TrainConfig
from motet.trainer.generate.generator import Sampling
from motet.trainer.run import checkpoint, optimizer
from motet.trainer.run.state import Run
from motet.trainer.run.train import train
from motet.trainer.use.evaluate import EVALUATION, evaluate
from motet.trainer.use.exported import export
from motet.trainer.use.media.samples import Limits, Prompt, Sampler
from motet.trainer.use.trained import Trained

CORPUS = Path(__file__).resolve().parents[2] / "examples/corpus"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of four steps on real transcribed speech, its codebooks delayed; its folder of data may be taken away."""
    root = tmp_path_factory.mktemp("trained")
    prompts = CORPUS / "speech/prompts"
    rows = [json.loads(line) for line in (prompts / "metadata.jsonl").read_text("utf-8").splitlines()[:24]]
    find("bpe").fit([row["text"].encode() for row in rows], root / "bpe", {"vocabulary": 300})
    sounds = [(prompts / row["file_name"]).read_bytes() for row in rows]
    find("melrvq").fit(sounds[:8], root / "melrvq", {"size": 16, "codebooks": 3})
    (root / "speech").mkdir()
    for row in rows:
        shutil.copy(prompts / row["file_name"], root / "speech")
    (root / "speech/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {
        "corpus": [{"name": "prompts", "format": "folder", "path": "speech", "modality": "speech"}],
        "tokenizers": {"text": {"use": "bpe", "path": "bpe"}, "speech": {"use": "melrvq", "path": "melrvq"}},
    }
    tokenize_corpus(TokenizeConfig.model_validate(corpus), root, root / "tokens")
    config = {
        "data": {
            "paths": [str(root / "tokens")],
            "sequence": 256,
            "holdout": 0.3,
            "streams": {"speech": "delayed"},
            "guidance_dropout": 0.1,
        },
        "model": {"dim": 32, "layers": 1, "heads": 2},
        **{"steps": 4, "rows": 2, "micro_rows": 2, "threads": 1},
    }
    train(TrainConfig.model_validate(config), root / "run")
    return root / "run"


def spoken(path: Path) -> bytes:
    sampler = Sampler(Trained.open(path))
    prompt = Prompt((("text", b"please hold the line"),), ("speech",))
    (sample,) = sampler.draw([prompt], Sampling(seed=3), Limits(seconds=0.4)).samples
    ((modality, data),) = sample.results
    assert modality == "speech" and data[:4] == b"RIFF"
    return data


def test_a_run_a_checkpoint_and_an_exported_folder_speak_alike_and_without_the_data(run, tmp_path):
    """The codebooks of each are delayed as in training: frames come whole, and the bytes are the same."""
    whole = spoken(run)
    exported = export(Trained.open(run), tmp_path / "exported")
    copied = Path(shutil.copytree(checkpoint.latest(run), tmp_path / "best"))
    data = run.parent / "tokens"
    data.rename(away := tmp_path / "away")
    try:
        assert spoken(run) == spoken(copied) == spoken(exported) == whole
    finally:
        away.rename(data)
    moved = exported.rename(tmp_path / "elsewhere")
    (run.parent / "bpe").rename(tmp_path / "bpe")
    (run.parent / "melrvq").rename(tmp_path / "melrvq")
    try:
        assert spoken(moved) == whole  # it has brought its tokenizers
        with pytest.raises(UserError, match=r"holds no fitted tokenizer|no such file"):
            spoken(run)
    finally:
        (tmp_path / "bpe").rename(run.parent / "bpe")
        (tmp_path / "melrvq").rename(run.parent / "melrvq")


def test_the_generator_of_a_bundle_draws_delayed_codes(run):
    trained = Trained.open(run)
    assert trained.streams == {"speech": "delayed"} and trained.guidance_dropout == 0.1
    generator = trained.generator()
    (tokens,) = generator.continue_([[]], "speech", shape=(5, 3), sampling=Sampling(seed=1))
    assert tokens.shape == (5, 3)
    flat = {**vars(trained), "streams": {}}
    (other,) = Trained(**flat).generator().continue_([[]], "speech", shape=(5, 3), sampling=Sampling(seed=1))
    assert tokens.ids.tolist() != other.ids.tolist()


def test_the_command_generates_from_an_exported_folder(run, tmp_path):
    exported = export(Trained.open(run), tmp_path / "exported")
    command = [sys.executable, "-m", "motet.orchestration", "generate", str(exported), "--text", "hello"]
    done = subprocess.run([*command, "--to", "speech", "--seconds", "0.3", "--out", str(tmp_path / "a.wav")])
    assert done.returncode == 0 and (tmp_path / "a.wav").read_bytes()[:4] == b"RIFF"
    evaluated = subprocess.run(
        [sys.executable, "-m", "motet.orchestration", "evaluate", str(exported)], capture_output=True, text=True
    )
    assert evaluated.returncode == 2 and "is an exported model, without the data" in evaluated.stderr


@pytest.mark.parametrize("name", ["step-000004", "best"])
def test_a_checkpoint_that_was_copied_is_evaluated_and_written_of_where_it_lies(run, tmp_path, name):
    (tmp_path / "a/b").mkdir(parents=True)
    copied = Path(shutil.copytree(checkpoint.latest(run), tmp_path / "a/b" / name))
    found = evaluate(Trained.open(copied))
    assert json.loads((copied / EVALUATION).read_text()) == json.loads(json.dumps(found))
    assert {path.name for path in tmp_path.rglob("*.json")} == {EVALUATION, "state.json"}
    assert Trained.open(copied).training.home == copied
    evaluate(Trained.open(run / "checkpoints/step-000004"))
    assert (run / EVALUATION).exists()


def rewritten(saved: Path, state: dict) -> None:
    (saved / checkpoint.STATE).write_text(json.dumps({**state, "hash": content_hash(state)}))


@pytest.fixture
def old(run, tmp_path) -> tuple[Path, dict]:
    """(a run as an older motet left it: one file of weights, one of moments; its checkpoint's state, of version 2)."""
    old = Path(shutil.copytree(run, tmp_path / "old"))
    saved = checkpoint.latest(old)
    state = json.loads((saved / checkpoint.STATE).read_bytes())
    del state["hash"]
    state["version"], files = 2, state.pop("files")
    state["files"] = {file.replace("/00000", ""): value for file, value in files.items()}
    for file in files:
        name = file.partition("/")[0]
        save_file(load_file(saved / file), saved / f"{name}.safetensors")
        state["files"][f"{name}.safetensors"] = checkpoint.settled(saved / f"{name}.safetensors")
        shutil.rmtree(saved / name)
    rewritten(saved, state)
    return old, state


def test_a_checkpoint_of_an_older_format_is_read_and_gone_on_from(run, old):
    path, _ = old
    weights = Trained.open(run).model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in Trained.open(path).model.state_dict().items())
    config = Trained.open(path).of_run().config
    runs = [Run.open(config, each) for each in (run, path)]
    now, then = (optimizer.state(each.model, each.optimizer) for each in runs)
    assert now.keys() == then.keys() and all(torch.equal(now[name], then[name]) for name in now)
    assert [each.step for each in runs] == [4, 4] and any(value.any() for value in now.values())


def test_a_checkpoint_of_the_first_format_finds_its_tokenizers_beside_its_data(run, old):
    path, state = old
    del state["tokenizers"], state["version"]
    rewritten(checkpoint.latest(path), state)
    settings = Trained.open(path).settings
    assert (
        settings
        == Trained.open(run).settings
        == yaml.safe_load((run.parent / "tokens/tokenize.yaml").read_text())["tokenizers"]
    )
    rewritten(checkpoint.latest(path), {**state, "version": 4})
    with pytest.raises(UserError, match="checkpoint format 4; this motet reads 1 to 3"):
        Trained.open(path)


def test_it_opens_in_another_type(run):
    assert Trained.open(run, torch.bfloat16).model.head.weight.dtype is torch.bfloat16
