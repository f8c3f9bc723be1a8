"""What holds for every test and all processes that tests start: one thread of arithmetic, one server to fork from.

The last bits of a floating-point result depend on the number of threads, and tokenizers run with the number that their
settings name (one): a comparison with the bare library, bit by bit, needs the same number on both sides.

Here is also the object store that tests read and write, a real S3 API on this machine, and what can go wrong with one.
"""

import http.client
import json
import os
import socket
import struct
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from motet.pipeline import remote

settings.register_profile("long", max_examples=10_000, deadline=None)  # test_orders.py, in docs/stream.md

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("RAY_ADDRESS", None)  # tests start clusters of their own
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = (
        "1"  # kernels are interpreted; Triton asks once, when whichever test first imports it
    )


GOLDEN = Path(__file__).with_name("golden.json")
"""Values that must not change unnoticed, each with the version that it belongs to."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="Note golden values anew whose version was raised.")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, int, Any], None]:
    """A function of (name, version, value): the value is what it was when this version of its format was first tested.

    A change that alters a value has to raise the version, and then calls pytest with `--write-golden -n 0`.
    """

    def check(name: str, version: int, value: Any) -> None:
        known = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}
        value = json.loads(json.dumps(value))
        had = known.get(name)
        if request.config.getoption("--write-golden") and (had is None or had["version"] != version):
            known[name] = {"version": version, "value": value}
            GOLDEN.write_text(json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n", "utf-8")
            return
        assert had is not None, f"{name} is not in {GOLDEN.name}"
        if had["version"] == version:
            assert value == had["value"], f"{name} has changed: raise its version, which is {version}"
        assert had["version"] == version, f"{name} has version {version}: note its value with --write-golden"

    return check


@pytest.fixture(scope="session", autouse=True)
def server() -> None:
    """Workers' processes are forked from a server; it imports once, before any test starts one, what all of them need."""
    from motet.pipeline.job.work import prepare

    prepare([f"motet.tokenizers.{name}" for name in ("text.bpe", "image.vqgan", "speech.melrvq")])


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 API on this machine, by its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket; the environment leads to it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # one that knows another end point
    bucket = f"motet-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}"


EXPIRED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
    b"<Message>The provided token has expired.</Message></Error>"
)


@dataclass
class Faults:
    """What the proxy does wrong: `fault(method, path, n)` names it for the n-th time that this very thing is asked for."""

    fault: Callable[[str, str, int], str] = lambda method, path, n: ""
    asked: Counter[tuple[str, ...]] = field(default_factory=Counter)
    sent: int = 0


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to a real S3 API, or does what the fault says."""

    protocol_version = "HTTP/1.1"
    server: Any

    def handle_any(self) -> None:
        faults: Faults = self.server.faults
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = (self.command, self.path, self.headers.get("Range") or "")
        faults.asked[key] += 1
        fault = faults.fault(self.command, self.path, faults.asked[key])
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if fault in ("503", "expired", "403"):
            status, told = {"503": (503, b""), "expired": (400, EXPIRED), "403": (403, b"")}[fault]
            return self.answer(status, {}, b"" if self.command == "HEAD" else told)
        upstream = http.client.HTTPConnection(*self.server.upstream)
        upstream.request(self.command, self.path, body, dict(self.headers))
        response = upstream.getresponse()
        data = response.read()
        upstream.close()
        headers = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        if fault == "slow":
            time.sleep(0.3)
        if fault == "short":  # a well-formed answer, but only half of what was asked for
            data, headers["Content-Length"] = data[: len(data) // 2], str(len(data) // 2)
        faults.sent += len(data)
        self.answer(response.status, headers, data, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: RUF100

    def answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "content-length" not in {name.lower() for name in headers}:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def log_message(self, *told: Any) -> None:
        """Says nothing."""


@pytest.fixture
def faults(s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Between everything that follows and the S3 API stands the proxy; the libraries' own retries are off."""
    host, port = s3_server.removeprefix("http://").split(":")
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    server.upstream, server.faults, server.daemon_threads = (host, int(port)), Faults(), True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(remote, "WAIT", 0.01)
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    yield server.faults
    server.shutdown()
    server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()
