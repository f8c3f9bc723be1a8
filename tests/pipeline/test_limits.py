"""How much may be lost holds for each source, and a job of which nothing comes is not gone through with."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.pipeline import progress
from motet.pipeline.dataset.quarantine import quarantine
from motet.pipeline.dataset.rejects import Reject
from motet.pipeline.job import limits
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.limits import AllRejected
from motet.pipeline.job.task import example


def lines(folder: Path, name: str, rows: list[Any]) -> dict[str, Any]:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"name": name, "format": "text", "path": f"{name}.jsonl"}


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.ray)])
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
    found = list(quarantine(tmp_path / "out"))
    assert len(found) >= limits.ENOUGH and {row["reason"] for row in found} == {"no-text"}
    assert " rejected, " in capfd.readouterr().err
    allowed = config.model_copy(update={"max_reject_fraction": 1.0})
    whole = tokenize_corpus(allowed, tmp_path, tmp_path / "out")
    assert (whole.rejected, whole.manifest.documents, whole.too_many_rejects) == (5000, 0, False)
    assert whole.partitions - whole.done >= done - 1, "what was committed counts"
    assert len(list(quarantine(tmp_path / "out"))) == 5000


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


def test_there_are_no_rejects_where_there_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="holds no token dataset"):
            list(quarantine(place))


@given(st.binary(max_size=300))
def test_whatever_a_sample_is_it_is_shown_in_one_printable_line(data: bytes) -> None:
    told = example(Reject("a@0", "not-json", "because", "", (("", data),)))
    assert told.startswith("a@0 (not-json: because)") and told.isprintable() and len(told) < 600
