"""Corpora behind links that give access themselves: read with them, named and stored without them."""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.core.errors import UserError
from motet.core.urls import censored, public
from motet.pipeline.job.job import tokenize_corpus
from motet.pipeline.job.work import PartitionFailed
from motet.pipeline.remote import concealed, know, revealed, secrets_of


class Guarded(BaseHTTPRequestHandler):
    """Files of a folder, in ranges, for whoever has the signature or the password that the server has now."""

    protocol_version = "HTTP/1.1"
    server: Any

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        user = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        if self.server.secret not in (user, *re.split(r"[&=]", query)):
            return self.answer(403, b"")
        file = self.server.root / path.lstrip("/")
        if not file.is_file():
            return self.answer(404, b"")
        data = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if wanted is None:
            return self.answer(200, data)
        self.answer(206, data[int(wanted[1]) : int(wanted[2]) + 1])

    do_HEAD = do_GET

    def answer(self, status: int, data: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", '"1"')
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *told: Any) -> None:
        """Says nothing."""


@pytest.fixture
def guarded(corpus: Path) -> Iterator[Any]:
    import fsspec

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    server.root, server.secret, server.daemon_threads = corpus, "hidden-one", True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    fsspec.filesystem("https").clear_instance_cache()
    yield server
    server.shutdown()
    server.server_close()


WAYS: dict[str, Callable[[str, str, str], str]] = {
    "S3": lambda at, path, word: f"http://{at}/{path}?X-Amz-Date=2{word}&X-Amz-Signature={word}&x-id=GetObject",
    "Azure": lambda at, path, word: f"http://{at}/{path}?sv=2022&se={word}&sr=c&sp=r&sig={word}",
    "a token": lambda at, path, word: f"http://{at}/{path}?access_token={word}",
    "a password": lambda at, path, word: f"http://me:{word}@{at}/{path}",
}


def held(out: Path) -> bytes:
    """Everything that a dataset's files hold, with their names."""
    return b"".join(str(p).encode() + p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file())


@pytest.mark.parametrize("way", WAYS)
def test_a_link_signed_anew_is_the_same_corpus_and_its_signature_stands_nowhere(
    way: str, guarded: Any, corpus: Path, configure, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Text in lines, whole texts, captioned pictures by a manifest; some of each rejected."""
    (corpus / "broken.jsonl").write_bytes((corpus / "text.jsonl").read_bytes() + b'{"text": ""}\nno json\n')
    for name in ("a.txt", "b.txt"):
        (corpus / name).write_text(f"{name} " * 50)

    def config(word: str) -> Any:
        at = f"127.0.0.1:{guarded.server_port}"
        user, asked = (
            ("me:" + word + "@", "") if way == "a password" else ("", WAYS[way]("", "", word).partition("?")[2])
        )
        pattern = f"http://{user}{at}/{{a,b}}.txt" + f"?{asked}" * bool(asked)
        entries = [
            {"name": "lines", "format": "text", "path": WAYS[way](at, "broken.jsonl", word)},
            {"name": "whole", "format": "text", "path": pattern},
        ]
        if way == "a password":
            entries += [{"name": "mixed", "format": "interleaved", "path": WAYS[way](at, "mixed.jsonl", word)}]
        return configure(corpus=entries)

    out = tmp_path / "out"
    guarded.secret = "me:hidden-one" if way == "a password" else "hidden-one"
    first = tokenize_corpus(config("hidden-one"), corpus, out)
    assert first.manifest.documents == 4 + 2 + 5 * (way == "a password") and first.rejected == 2
    before = held(out)
    guarded.secret = "me:secret-two" if way == "a password" else "secret-two"
    second = tokenize_corpus(config("secret-two"), corpus, out)
    assert (second.done, second.manifest.documents) == (0, first.manifest.documents)
    assert held(out) == before
    for stored in (before, "".join(capfd.readouterr()).encode()):
        assert not re.search(rb"hidden-one|secret-two|//me", stored)
    names = {given["path"] for entry in second.manifest.shards for given in entry.inputs}
    assert {"broken.jsonl", "a.txt", "b.txt"} <= names


@pytest.mark.parametrize("way", WAYS)
def test_no_message_shows_what_gives_access(way: str, guarded: Any, corpus: Path, configure, tmp_path: Path) -> None:
    at, told = f"127.0.0.1:{guarded.server_port}", []
    guarded.secret = "me:word-9" if way == "a password" else "word-9"

    def run(path: str, word: str, **fields: Any) -> None:
        entry = {"name": "a", "format": "text", "path": WAYS[way](at, path, word), **fields}
        with pytest.raises((UserError, PartitionFailed)) as caught:
            tokenize_corpus(configure(corpus=[entry]), corpus, tmp_path / "out")
        told.append(str(caught.value))

    run("none.jsonl", "word-9")
    run("text.jsonl", "word-8")
    run("text.jsonl", "word-9", format="parquet", columns={"a": "text"})
    (corpus / "a.parquet").write_bytes(b"PAR1, but no more")
    run("a.parquet", "word-9", format="parquet", columns={"a": "text"})
    run("nowhere", "word-9", format="folder", modality="image")
    assert not [each for each in told if "word-" in each], told
    assert all(at in each for each in told), told


def test_rejects_name_links_without_what_gives_access(corpus: Path, configure, tmp_path: Path) -> None:
    link = "https://me:hidden@host/a.jpg?X-Amz-Signature=hidden"
    rows = [{"parts": [{"image": link}]}, {"parts": [{"image": link.replace("hidden", "other")}]}]
    (corpus / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configure(corpus=[{"name": "a", "format": "interleaved", "path": "mixed.jsonl"}])
    found = list(tokenize_corpus(config, corpus, tmp_path / "out").manifest.quarantine())
    assert [row["detail"].split()[0] for row in found] == ["https://host/a.jpg"] * 2
    assert not re.search(rb"hidden|other", held(tmp_path / "out"))


WORDS = st.text(st.sampled_from("abcXYZ019-_~%."), min_size=1, max_size=12)


@given(WORDS, WORDS, st.sampled_from(["https://{0}@{1}/x", "s3://k:{0}@b/{1}", "ftp://u:{0}@{1}:21/{1}"]))
def test_what_is_concealed_is_revealed_elsewhere(secret: str, other: str, form: str) -> None:
    url = form.format(secret, other)
    shown = concealed(url)
    assert "@" not in shown and public(shown) == shown
    told = secrets_of([shown])
    know(told)
    assert revealed(shown) == url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/get?file=a/b&token=q&version=2", "https://h/get?file=a/b&version=2"),
        ("https://h/a.tar?Policy=p&Signature=s&Key-Pair-Id=K", "https://h/a.tar"),
        ("https://h/a?X-Goog-Credential=me&X-Goog-Expires=9&generation=3", "https://h/a"),
        ("https://h:8080/a?b=c", "https://h:8080/a?b=c"),
        ("hf://datasets/me/words@main/*.parquet", "hf://datasets/me/words@main/*.parquet"),
        ("s3://bucket/me@here/key-?.jsonl", "s3://bucket/me@here/key-?.jsonl"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("zip://a.csv::https://me:word@h/x?sig=1", "zip://a.csv::https://h/x"),
        ("https://me:cut-off-here", "https://"),
        ("a path: me@host?token=1", "a path: me@host?token=1"),
    ],
)
def test_only_what_gives_access_goes(url: str, shown: str) -> None:
    assert public(url) == shown
    assert censored(f"url='{url}', (2)") == f"url='{shown}', (2)"
