"""Checkpoints: all of it or nothing of it, and damage is named."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from motet.core.errors import UserError
from motet.trainer.config import ModelConfig
from motet.trainer.data.order import Cursor
from motet.trainer.model.mot import MoT
from motet.trainer.run import checkpoint
from motet.trainer.run.checkpoint import MODEL, OPTIMIZER, STATE, DamagedCheckpoint, State
from motet.trainer.run.saving import Saver
from motet.trainer.use.trained import Trained

FILES = (f"{MODEL}/00000.safetensors", f"{OPTIMIZER}/00000.safetensors", STATE)


def state(step: int) -> State:
    return State(step, 10 * step, "f" * 32, Cursor(step, (7,), (11,)), 1, {"tokenizers": {}}, {"lr": 0.1})


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(5, 7, generator=generator), "b": torch.randn(3, generator=generator).double()}


def save(out: Path, step: int, seed: int = 0, keep: int = 2) -> Path:
    with Saver(out, keep, 0, print) as saver:
        saver.begin(state(step), tensors(seed), tensors(seed + 1))
    return checkpoint.place(out, step)


def loaded(path: Path, name: str) -> dict[str, torch.Tensor]:
    found = {key: torch.zeros_like(tensor) for key, tensor in tensors(0).items()}
    checkpoint.load(path, checkpoint.read_state(path), name, found)
    return found


@pytest.fixture
def out(tmp_path):
    for step in (5, 10):
        save(tmp_path, step, step)
    return tmp_path


def test_comes_back_to_the_bit(out):
    newest = checkpoint.latest(out)
    assert newest.name == "step-000010"
    found = checkpoint.read_state(newest)
    assert (found.step, found.tokens, found.config) == (10, 100, {"lr": 0.1})
    for name, seed in ((MODEL, 10), (OPTIMIZER, 11)):
        assert all(torch.equal(loaded(newest, name)[key], tensor) for key, tensor in tensors(seed).items())


def test_weights_of_another_version_are_told_apart_from_damage(out):
    newest = checkpoint.latest(out)
    model = MoT(ModelConfig(dim=8, layers=1, heads=1), ["text"], 10)
    with pytest.raises(UserError, match=r"another version of motet wrote it.*blocks\.0\.attention_norm: nothing there"):
        checkpoint.load(newest, checkpoint.read_state(newest), MODEL, model.state_dict())


def test_only_the_last_are_kept(out):
    save(out, 15)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-000010", "step-000015"]


@pytest.mark.parametrize("written", range(4))
def test_a_half_written_one_is_not_seen_and_swept_away(out, written):
    partial = out / "checkpoints" / "step-000015.partial"
    partial.mkdir()
    for name in FILES[:written]:
        (partial / name).parent.mkdir(exist_ok=True)
        (partial / name).write_bytes(b"half")
    assert checkpoint.latest(out).name == "step-000010"
    save(out, 15, keep=3)
    assert checkpoint.latest(out).name == "step-000015"
    assert len(list((out / "checkpoints").iterdir())) == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_named_with_the_way_on(out, name, damage):
    newest = checkpoint.latest(out)
    path = newest / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(DamagedCheckpoint) as error:
        for part in (MODEL, OPTIMIZER):
            loaded(newest, part)
    assert str(path) in str(error.value) and "goes on from step-000005" in str(error.value)
    shutil.rmtree(newest)
    assert checkpoint.read_state(checkpoint.latest(out)).step == 5


def test_every_byte_of_the_state_counts(out):
    path = checkpoint.latest(out) / STATE
    sound = path.read_bytes()
    for at in range(0, len(sound), 7):
        damaged = bytearray(sound)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        try:
            found = checkpoint.read_state(path.parent)
        except DamagedCheckpoint:
            continue
        assert json.loads(damaged) == json.loads(sound), f"byte {at}"
        assert found.step == 10


def test_nothing_to_open(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        Trained.open(tmp_path)


def test_all_of_it_is_on_the_disk_before_it_has_its_name(out, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(("sync", path.relative_to(out), path.read_bytes() if path.is_file() else b""))
        fsync(descriptor)

    def renamed(old, new, **options):
        done.append(("rename", Path(old).relative_to(out), Path(new).relative_to(out)))
        replace(old, new, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    final = save(out, 15)
    folder = Path("checkpoints")
    partial = folder / "step-000015.partial"
    written = {("sync", partial / name, (final / name).read_bytes()) for name in FILES}
    named = done.index(("rename", partial, folder / "step-000015"))
    folders = {("sync", partial / name, b"") for name in (MODEL, OPTIMIZER, ".")}
    assert {*done[:named]} == written | folders
    # Its name is there to stay before an older one goes.
    assert done[named + 1] == ("sync", folder, b"")


def test_the_millionth_step_is_later_than_the_one_before(out):
    for step in (999_999, 1_000_000):
        save(out, step)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-1000000", "step-999999"]
    assert checkpoint.read_state(checkpoint.latest(out)).step == 1_000_000


def begin(saver: Saver, step: int) -> None:
    saver.begin(state(step), tensors(step), tensors(step + 1))


@pytest.fixture
def blocked(tmp_path):
    """(a run folder in which no checkpoint can be written, the file that is in the way)."""
    (tmp_path / "checkpoints").write_text("not a folder")
    return tmp_path, tmp_path / "checkpoints"


def test_a_save_that_fails_is_told_and_the_next_ones_count_anew(blocked):
    out, block = blocked
    said: list[str] = []
    with Saver(out, 2, 1, said.append) as saver:
        begin(saver, 5)
        assert said and f"{block}" in said[0] and "checkpoint of step 5 cannot be written" in said[0]
        block.unlink()
        begin(saver, 10)
        saver.finish()
        shutil.rmtree(block)
        block.write_text("again")
        begin(saver, 15)  # the first one that fails since
        assert len(said) == 2
        block.unlink()
        begin(saver, 20)
    assert [path.name for path in block.iterdir()] == ["step-000020"]


def test_too_many_failures_in_a_row_stop(blocked):
    said: list[str] = []
    with pytest.raises(UserError, match="step 10 cannot be written"), Saver(blocked[0], 2, 1, said.append) as saver:
        begin(saver, 5)
        begin(saver, 10)
    assert len(said) == 1


def test_the_last_save_of_a_run_may_not_fail(blocked):
    told = r"step 5 cannot be written.*goes on from the checkpoint before it"
    with pytest.raises(UserError, match=told), Saver(blocked[0], 2, 9, print) as saver:
        begin(saver, 5)


def test_a_fault_of_ours_is_no_full_disk(tmp_path):
    broken = {"a": torch.zeros(3, dtype=torch.complex128), "b": torch.zeros(2, 2).t()}
    with pytest.raises(Exception, match=r"(?i)complex|dtype|type") as raised, Saver(tmp_path, 2, 9, print) as saver:
        saver.begin(state(5), broken, tensors(1))
    assert not isinstance(raised.value, UserError)


def test_what_training_does_to_the_weights_meanwhile_is_not_saved(tmp_path):
    weights = {"large": torch.arange(1 << 24, dtype=torch.float32)}  # its writing takes longer than what follows
    with Saver(tmp_path, 2, 0, print) as saver:
        saver.begin(state(5), weights, tensors(4))
        weights["large"].zero_()
    found, path = {"large": torch.zeros(1 << 24)}, checkpoint.place(tmp_path, 5)
    checkpoint.load(path, checkpoint.read_state(path), MODEL, found)
    assert torch.equal(found["large"], torch.arange(1 << 24, dtype=torch.float32))


def test_a_step_that_is_saved_again_replaces_the_first(out):
    save(out, 10, seed=77)
    assert torch.equal(loaded(checkpoint.place(out, 10), MODEL)["a.weight"], tensors(77)["a.weight"])
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000005", "step-000010"]
