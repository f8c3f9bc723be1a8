"""The job: the same bytes whatever the engine and however often it was killed; only what changed is done again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from motet.pipeline.job import tokenize_corpus
from motet.tokenizers.configuration import dump_config


def traces(out: Path) -> int:
    """Files and folders below `out`; what vanishes while it looks does not matter."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(out))


def contents(out: Path) -> dict[str, bytes]:
    """All that decides what a reader sees."""
    return {str(p.relative_to(out)): p.read_bytes() for p in [out / "manifest.json", *sorted(out.glob("shards/*"))]}


@pytest.fixture
def undisturbed(corpus: Path, configure, tmp_path: Path) -> dict[str, bytes]:
    result = tokenize_corpus(configure(), corpus, tmp_path / "one")
    assert result.done == result.partitions == 8
    return contents(tmp_path / "one")


def test_two_workers_write_the_bytes_of_one(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    tokenize_corpus(configure(), corpus, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == undisturbed


@pytest.mark.ray
def test_ray_writes_the_bytes_of_the_local_engine(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    tokenize_corpus(configure(), corpus, tmp_path / "ray", engine="ray", workers=2)
    assert contents(tmp_path / "ray") == undisturbed


def test_nothing_of_this_machine_is_in_the_manifest(undisturbed, corpus: Path) -> None:
    text = b"".join(undisturbed.values())
    assert str(corpus).encode() not in text and os.uname().nodename.encode() not in undisturbed["manifest.json"]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    undisturbed, corpus: Path, configure, tmp_path: Path
) -> None:
    out, config = tmp_path / "killed", tmp_path / "tokenize.yaml"
    settings = yaml.safe_load(dump_config(configure()))
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "motet.orchestration", "tokenize", str(config), "--out", str(out), "--json"]
    for i, entry in enumerate(settings["corpus"]):
        command += ["--set", f"corpus.{i}.path={corpus / entry['path']}"]
    chance = random.Random(1)
    killed = 0
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        # Kill it a little after each new trace of work, so that the moments lie between start and end on any machine.
        before = traces(out)
        while process.poll() is None and traces(out) <= before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        if process.returncode == 0:
            break
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert killed >= 2
    assert json.loads(done.stdout)["documents"] == 49
    assert contents(out) == undisturbed
    assert not list(out.glob(".tmp/*"))


def test_running_again_does_nothing(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    assert tokenize_corpus(configure(), corpus, tmp_path / "one").done == 0
    assert contents(tmp_path / "one") == undisturbed


def test_only_what_changed_is_done_again(undisturbed, corpus: Path, configure, tools: Path, tmp_path: Path) -> None:
    name = json.loads((corpus / "pictures/metadata.jsonl").read_text(encoding="utf-8").splitlines()[9])["file_name"]
    other = sorted((corpus / "pictures").glob("*.webp"))[-1]
    (corpus / "pictures" / name).write_bytes(other.read_bytes() + b"\0")
    assert tokenize_corpus(configure(), corpus, tmp_path / "one").done == 1
    changed = contents(tmp_path / "one")
    assert len(changed.keys() & undisturbed.keys()) == len(undisturbed) - 1

    tokenizers = {**configure().tokenizers, "image": {"use": "vqgan", "path": str(tools / "vqgan"), "size": 24}}
    result = tokenize_corpus(configure(tokenizers=tokenizers), corpus, tmp_path / "one")
    shards = {e.file for e in result.manifest.shards if e.source in ("text", "sounds")}
    assert shards <= changed.keys(), "text and speech shards stay as they are"
    assert result.done == sum(e.source in ("pictures", "mixed") for e in result.manifest.shards)
    assert len(list((tmp_path / "one/shards").iterdir())) == sum(bool(e.file) for e in result.manifest.shards)


def test_what_it_used_starts_it_again(undisturbed, corpus: Path, configure, tmp_path: Path) -> None:
    from motet.pipeline.config import TokenizeConfig
    from motet.tokenizers.configuration import load_config

    complete = load_config(tmp_path / "one/tokenize.yaml", TokenizeConfig)
    tokenize_corpus(complete, Path("/"), tmp_path / "again")
    assert contents(tmp_path / "again") == undisturbed


def test_a_killed_worker_is_told_and_what_it_had_done_is_kept(corpus: Path, configure, tmp_path: Path) -> None:
    from motet.pipeline.engines.local import WorkerLost

    killer = """
import os, signal, sys, threading, time
from pathlib import Path
def kill():
    while not list(Path(sys.argv[1]).glob('commits/*')): time.sleep(0.01)
    for child in os.popen(f'pgrep -P {os.getpid()}').read().split():
        if b'spawn_main' in Path(f'/proc/{child}/cmdline').read_bytes(): os.kill(int(child), signal.SIGKILL)
"""
    script = tmp_path / "driver.py"
    script.write_text(
        killer
        + f"""
if __name__ == '__main__':
    from motet.pipeline.config import TokenizeConfig
    from motet.pipeline.job import tokenize_corpus
    from motet.tokenizers.configuration import load_config
    threading.Thread(target=kill, daemon=True).start()
    tokenize_corpus(load_config({str(tmp_path / "c.yaml")!r}, TokenizeConfig), Path({str(corpus)!r}), Path(sys.argv[1]), workers=2)
"""
    )
    (tmp_path / "c.yaml").write_text(dump_config(configure()))
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "out")], capture_output=True, text=True)
    if done.returncode:  # it may have been through before the blow fell
        assert WorkerLost.__name__ in done.stderr and "goes on with the rest" in done.stderr
    result = tokenize_corpus(configure(), corpus, tmp_path / "out")
    assert result.done < result.partitions and result.manifest.documents == 49
