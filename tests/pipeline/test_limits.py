"""How much may be lost holds for each source, and a job of which nothing comes is not gone through with."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.pipeline import progress
from motet.pipeline.dataset.header import DamagedShard
from motet.pipeline.dataset.quarantine import quarantine
from motet.pipeline.dataset.rejects import Reject
from motet.pipeline.job import limits
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.limits import AllRejected, too_many
from motet.pipeline.job.task import example


def lines(folder: Path, name: str, rows: list[Any]) -> dict[str, Any]:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"name": name, "format": "text", "path": f"{name}.jsonl"}


ENGINES = ["local", pytest.param("ray", marks=pytest.mark.ray), pytest.param("beam", marks=pytest.mark.beam)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_source_that_is_lost_whole_is_too_much_beside_a_large_sound_one(
    engine: str, tmp_path: Path, configure
) -> None:
    """21 of 21 in 3,000 samples; and a source that loses a little is told of only where that is over the limit."""
    sound = lines(tmp_path, "sound", [{"text": f"number {i}"} for i in range(2900)] + [{"text": ""}] * 20)
    lost = lines(tmp_path, "lost", [{"body": f"number {i}"} for i in range(21)])
    half = lines(tmp_path, "half", [{"text": "a"}, {"text": None}] * 2)
    config = configure(corpus=[sound, lost, half], max_reject_fraction=0.02)
    result = tokenize_corpus(config, tmp_path, tmp_path / "out", engine=engine)
    assert result.rejected < 0.02 * result.samples
    assert result.too_many_rejects and result.over == {"lost": (21, 21), "half": (2, 4)}
    for limit, over in ((0.5, ["lost"]), (1.0, [])):
        again = tokenize_corpus(config.model_copy(update={"max_reject_fraction": limit}), tmp_path, tmp_path / "out")
        assert (again.done, list(again.over), again.too_many_rejects) == (0, over, bool(over))


def test_a_job_of_which_nothing_comes_stops_and_says_how_its_samples_look(
    tmp_path: Path, configure, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    rows = [{"body": f"number {i} " + "x" * 100} for i in range(5000)]
    config = configure(corpus=[lines(tmp_path, "lost", rows)], partition_bytes=20_000)
    with pytest.raises(AllRejected, match=r"lost: all \d+ samples so far were rejected \(no-text \d+\)") as caught:
        tokenize_corpus(config, tmp_path, tmp_path / "out")
    assert "no column 'text'" in str(caught.value) and '{"body":"number' in str(caught.value).replace(": ", ":")
    done = len(list((tmp_path / "out/commits").iterdir()))
    assert 2 <= done < 10, "of some 30 partitions"
    with pytest.raises(AllRejected, match=r"lost: all \d+ samples so far"):  # the same command is no way past it
        tokenize_corpus(config, tmp_path, tmp_path / "out")
    again = len(list((tmp_path / "out/commits").iterdir()))
    assert done < again <= done + 2
    found = list(quarantine(tmp_path / "out"))
    assert len(found) >= limits.ENOUGH and {row["reason"] for row in found} == {"no-text"}
    assert " rejected, " in capfd.readouterr().err
    allowed = config.model_copy(update={"max_reject_fraction": 1.0})
    whole = tokenize_corpus(allowed, tmp_path, tmp_path / "out")
    assert (whole.rejected, whole.manifest.documents, whole.too_many_rejects) == (5000, 0, False)
    assert whole.partitions - whole.done == again, "what was committed counts"
    assert len(list(quarantine(tmp_path / "out"))) == 5000


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_stops_early_and_leaves_what_it_has_seen(
    engine: str, keep: bool, tmp_path: Path, configure, capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """Beside a sound source, whose samples do not count for the other."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    lost = lines(tmp_path, "lost", [{"text": i} for i in range(6000)])
    sound = lines(tmp_path, "sound", [{"text": f"number {i}"} for i in range(200)])
    config = configure(corpus=[lost, sound], partition_bytes=1500, max_reject_fraction=0.1, keep_rejected=keep)
    with pytest.raises(AllRejected, match=r"lost: all \d+ samples so far were rejected \(not-a-string \d+\)") as caught:
        tokenize_corpus(config, tmp_path, tmp_path / "out", engine=engine, workers=2)
    assert "lost.jsonl@" in str(caught.value) and "max_reject_fraction: 1" in str(caught.value)
    assert not (tmp_path / "out/manifest.json").exists()
    told = list(quarantine(tmp_path / "out"))
    assert {row["source"] for row in told} == {"lost"} and len(told) >= limits.ENOUGH
    assert {row["parts"] is None for row in told} == {not keep}
    if engine != "beam":  # which looks at its commits once a second, and may find all at its first look
        assert " rejected, " in capfd.readouterr().err and len(told) < 6000


@pytest.mark.parametrize("first", [0, 4000])
def test_a_source_of_which_something_comes_is_gone_through_with(first: int, tmp_path: Path, configure) -> None:
    """One sound sample in 5,000, found early or late by as much as the limit allows."""
    rows: list[Any] = [{"body": f"number {i}"} for i in range(5000)]
    rows[first] = {"text": "sound"}
    config = configure(corpus=[lines(tmp_path, "lost", rows)], partition_bytes=5_000, max_reject_fraction=0.9)
    result = tokenize_corpus(config, tmp_path, tmp_path / "out")
    assert (result.rejected, result.manifest.documents, result.too_many_rejects) == (4999, 1, True)


def test_what_was_done_before_keeps_a_source(tmp_path: Path, configure) -> None:
    text = lines(tmp_path, "text", [{"text": f"number {i}"} for i in range(100)])
    config = configure(corpus=[text], partition_bytes=1500)
    tokenize_corpus(config, tmp_path, tmp_path / "out")
    lines(tmp_path, "text", [{"text": f"number {i}"} for i in range(100)] + [{"body": "x"}] * 3000)
    (tmp_path / "out/manifest.json").unlink()
    result = tokenize_corpus(config, tmp_path, tmp_path / "out")
    assert result.manifest.documents == 100 and result.rejected == 3000 and result.over == {"text": (3000, 3100)}


def test_what_a_stopped_job_rejected_is_shown_beside_what_was_there_before(tmp_path: Path, configure) -> None:
    """A sound dataset, then a configuration that names the wrong field: its rejects are what `motet rejects` is asked for."""
    rows: list[Any] = [{"text": f"number {i}", "other": None} for i in range(3000)]
    text = lines(tmp_path, "text", rows)
    few = lines(tmp_path, "few", [{"text": ""}, {"text": "a"}])
    config = configure(corpus=[few, text], partition_bytes=4000, max_reject_fraction=0.5)
    manifest = tokenize_corpus(config, tmp_path, tmp_path / "out").manifest
    assert [row["reason"] for row in quarantine(tmp_path / "out")] == ["empty-text"]
    wrong = config.model_copy(
        update={"corpus": (config.corpus[0], config.corpus[1].model_copy(update={"column": "other"}))}
    )
    for _ in range(2):
        with pytest.raises(AllRejected, match="text: all"):
            tokenize_corpus(wrong, tmp_path, tmp_path / "out")
        told = Counter((row["source"], row["reason"]) for row in quarantine(tmp_path / "out"))
        assert told["few", "empty-text"] == 1 and told["text", "not-a-string"] >= limits.ENOUGH and len(told) == 2
    assert tokenize_corpus(config, tmp_path, tmp_path / "out").manifest == manifest
    assert [row["reason"] for row in quarantine(tmp_path / "out")] == ["empty-text"]


def test_rejects_of_a_stopped_job_are_checked_before_they_are_read(tmp_path: Path, configure) -> None:
    config = configure(corpus=[lines(tmp_path, "lost", [{"body": i} for i in range(3000)])], partition_bytes=4000)
    with pytest.raises(AllRejected):
        tokenize_corpus(config, tmp_path, tmp_path / "out")
    whole = list(quarantine(tmp_path / "out"))
    (tmp_path / "out/rejects/left-by-a-kill.arrow").write_bytes(b"half a file, of which no commit tells")
    assert list(quarantine(tmp_path / "out")) == whole
    file = sorted((tmp_path / "out/rejects").glob("lost-*"))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    with pytest.raises(DamagedShard, match=f"{file.name}: is not what was written; .*--retry-rejects"):
        list(quarantine(tmp_path / "out"))
    file.unlink()
    with pytest.raises(DamagedShard, match=f"{file.name}: is missing; the same `motet tokenize`"):
        list(quarantine(tmp_path / "out"))


@pytest.mark.parametrize("percent", range(101))
def test_as_many_as_the_limit_says_are_allowed_and_one_more_is_not(percent: int) -> None:
    limit = float(f"{percent / 100:.2f}")
    for hundreds in (1, 7, 1000):
        assert not too_many(percent * hundreds, 100 * hundreds, limit)
        assert percent == 100 or too_many(percent * hundreds + 1, 100 * hundreds, limit)
    assert not too_many(0, 0, limit)


def test_there_are_no_rejects_where_there_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="holds no token dataset"):
            list(quarantine(place))


@given(st.binary(max_size=300))
def test_whatever_a_sample_is_it_is_shown_in_one_printable_line(data: bytes) -> None:
    told = example(Reject("a@0", "not-json", "because", "", (("", data),)))
    assert told.startswith("a@0 (not-json: because)") and told.isprintable() and len(told) < 600
