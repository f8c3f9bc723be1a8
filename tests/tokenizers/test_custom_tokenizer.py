"""The example plug-in passes the kit on its real data, by the class that its entry point names, nothing installed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from motet.tokenizers.conformance import check_settings
from motet.tokenizers.contract import BadSample
from motet.tokenizers.registry import build

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "custom_tokenizer"
FILES = [file.read_bytes() for file in sorted((EXAMPLE / "data").glob("*.csv"))]
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]


@pytest.fixture
def use(monkeypatch) -> str:
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    return PROJECT["entry-points"]["motet.tokenizers"]["series"]


def test_it_depends_on_the_tokenizers_room_alone():
    assert PROJECT["dependencies"] == ["motet-tokenizers"]
    source = (EXAMPLE / "src/motet_series/series.py").read_text()
    assert "motet.tokenizers" in source
    assert not any(room in source for room in ("motet.pipeline", "motet.trainer", "motet.orchestration"))


def test_it_passes_the_kit(use, tmp_path):
    report = check_settings({"use": use}, tmp_path, FILES)
    assert report.passed, str(report)
    assert report.spec.modality == "series"


def test_real_series_come_back_within_a_bin(use, tmp_path):
    tokenizer = build({"use": use}, tmp_path, "series")
    series = [tokenizer.load(file) for file in FILES]
    assert len(series) == 16 and {len(each) for each in series} == {365, 366}
    for one, back in zip(series, tokenizer.decode(tokenizer.encode(series)), strict=True):
        assert np.abs(one - back).max() < 0.01 * np.abs(one).mean()


def test_the_settings_that_change_tokens_change_the_hash(use, tmp_path):
    hashes = {build({"use": use, **changed}, tmp_path).spec.hash for changed in ({}, {"bins": 512}, {"limit": 4.0})}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty-file"),
        (b"step,value\n1,\xff\n", "invalid-utf8"),
        (b"step,value\n", "not-a-series"),
        (b"step,value\n0,warm\n", "not-a-series"),
        (b'step,value\n0,"1\n', "not-a-series"),
        (b"step,value\n0,nan\n", "not-finite-series"),
        (b"step,value\n0,1e300\n", "not-finite-series"),
        (b"v\n" + b"1\n" * 100_001, "series-too-long"),
    ],
)
def test_what_is_no_series_is_refused(use, tmp_path, data, reason):
    with pytest.raises(BadSample) as caught:
        build({"use": use}, tmp_path).load(data)
    assert caught.value.reason == reason


def test_zeros_are_a_series(use, tmp_path):
    tokenizer = build({"use": use}, tmp_path)
    (back,) = tokenizer.decode(tokenizer.encode([tokenizer.load(b"value\n0\n0\n")]))
    assert np.abs(back).max() < 1e-6
