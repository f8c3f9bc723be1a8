"""kill -9 at every file-system call of a whole job: the same command then finishes, with the same bytes."""

import os
import signal
import sys
from pathlib import Path

from motet.pipeline.dataset.gc import collect
from motet.pipeline.dataset.store import store_of
from motet.pipeline.job import job
from motet.pipeline.job.child import describe
from motet.pipeline.job.engines import local
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.tokenize import Guard
from motet.tokenizers.registry import build

CALLS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.listdir", "os.scandir", "fcntl.flock"}


def in_this_process(work, tasks, workers, options):
    """The local engine without processes of its own, so that one kill ends all that writes."""
    tokenizers = {m: build(s, Path("/"), m) for m, s in work.tokenizers.items()}
    for task in tasks:
        yield task.do(work.output, tokenizers, Guard())


def run_until(call: int, out: Path, work) -> bool:
    """Run `work` in a forked process that kills itself before its `call`-th file-system call in `out`; whether it got there."""
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(event: str, args: tuple) -> None:
            nonlocal seen
            if event in CALLS and (event == "fcntl.flock" or str(out) in str(args[0])):
                seen += 1
                if seen == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_kill_at_any_file_system_call_is_made_good(corpus: Path, configure, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local, "run", in_this_process)
    monkeypatch.setattr(job, "described", lambda settings, base: describe(settings, base, {}))
    config = configure(
        corpus=[{"name": "text", "format": "text", "path": "text.jsonl"}],
        tokenizers={"text": configure().tokenizers["text"]},
    )
    with open(corpus / "text.jsonl", "ab") as rows:
        rows.write(b"no json\n")
    manifest = tokenize_corpus(config, corpus, tmp_path / "whole").manifest
    whole, shards = manifest.to_text(), len(manifest.shards)
    call = 0
    while True:
        call += 1
        out = tmp_path / f"killed-{call}"
        killed = run_until(call, out, lambda out=out: tokenize_corpus(config, corpus, out))
        assert tokenize_corpus(config, corpus, out).manifest.to_text() == whole, f"after a kill at call {call}"
        assert (out / "manifest.json").read_text(encoding="utf-8") == whole and not list(out.glob(".tmp/*"))
        assert {path.split("-")[0] for path in collect(store_of(out), 0).files} <= {"rejects/text", "shards/text"}
        assert len(list(out.glob("shards/*"))) == len(list(out.glob("commits/*"))) == shards
        if not killed:
            break
    assert call > 20, "the job made fewer calls than it has files to write"
