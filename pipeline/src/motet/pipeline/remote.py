"""The client of remote stores: s3://, gs://, hf://, https:// and the like through fsspec, asked again while that may help.

    URI --`ask(question)`--> the answer;  `ranged`, `read` --> bytes, as many as promised

What may pass (5xx, time-outs, resets, short answers) is tried again, ever more slowly; if it does not pass, it is
`Unreachable`, and the same command will do it later. A refusal (an expired token, a missing permission) is told at once:
`Refused`. Keys and end points come from the cloud libraries' own environment variables and files, so a URI can be sent to
any worker. What gives access in a URI itself, a password or the signature of a presigned link, is kept here (`concealed`)
and put back only where the store is asked; everybody else has the public URI, and may store and print it. Reading and
writing both go this way, for corpora, datasets and training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from motet.core.errors import UserError
from motet.core.urls import censored, public

ATTEMPTS = 8
WAIT = 0.2
"""Seconds before the second attempt; doubled for every further one, up to 10."""
T = TypeVar("T")


class Unreachable(Exception):
    """A remote store does not answer, or not in full, however often it is asked."""


class Refused(UserError):
    """A remote store answers that we may not: trying again helps only when something else has changed."""


@dataclass(frozen=True)
class Info:
    """Size in bytes, and what changes when the content does: ETag, or the time of its last change."""

    size: int
    version: str


def is_remote(path: str) -> bool:
    """Whether this is a URI."""
    return "://" in path


_secrets: dict[str, str] = {}
"""Queries by their whole public URI, and users with their passwords by scheme and host."""


def concealed(path: str) -> str:
    """The public URI of one that may give access itself; this process can read it by its public name from now on."""
    shown = public(path)
    if shown != path and "::" not in path:
        rest = path.partition("://")[2]
        at = rest.partition("?")[0].partition("/")[0].rpartition("@")[0]
        if at:
            _secrets[_host(shown)] = at
        if "?" in rest:
            _secrets[shown] = rest.partition("?")[2]
    elif shown != path:
        _secrets[shown] = path
    return shown


def secrets_of(paths: Iterable[str]) -> dict[str, str]:
    """What `know` needs in another process to read these public URIs there."""
    names = {name for path in paths if is_remote(path) for name in (path, _host(path))}
    return {name: _secrets[name] for name in sorted(names) if name in _secrets}


def know(secrets: Mapping[str, str]) -> None:
    """Learn what another process's `secrets_of` told."""
    _secrets.update(secrets)


def revealed(path: str) -> str:
    """The URI that gives access, of a public one."""
    if not _secrets or not is_remote(path):
        return path
    if "::" in path:
        return _secrets.get(path, path)
    scheme, _, rest = path.partition("://")
    if (query := _secrets.get(path)) is not None:
        rest = f"{rest.partition('?')[0]}?{query}"
    at = _secrets.get(_host(path))
    return f"{scheme}://{at}@{rest}" if at else f"{scheme}://{rest}"


def _host(path: str) -> str:
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{rest.partition('/')[0].partition('?')[0]}"


def ask(path: str, question: Callable[[Any, str], T]) -> T:
    """`question(file system, name)`, asked again while what goes wrong may pass."""
    fs, name = _file_system(path)

    def attempt() -> T:
        try:
            return question(fs, name)
        except Exception as error:
            raise _judged(error, path) from error

    retrying = Retrying(
        retry=retry_if_exception_type(Unreachable),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(initial=WAIT, max=10, jitter=WAIT),
        reraise=True,
    )
    return retrying(attempt)


def ranged(path: str, begin: int, end: int) -> bytes:
    """Bytes [begin, end) of a file; as many, or an exception."""
    if end <= begin:
        return b""

    def fetch(fs: Any, name: str) -> bytes:
        data = fs.cat_file(name, start=begin, end=end)
        if len(data) < end - begin:
            raise ConnectionError(f"{len(data)} bytes came of the {end - begin} from {begin}")
        if len(data) > end - begin:
            raise Refused(f"{path}: this server cannot send a part of a file; copy the file to a store that can")
        return data

    return ask(path, fetch)


def _judged(error: Exception, path: str) -> Exception:
    """What a file system's exception means: missing, refused, for now unreachable, or a bug (itself)."""
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        if not path.startswith("http"):
            return error
        # fsspec's client of the web says of every failure that there is no such file, and names it with its signature
        judged = _judged(cause, path) if isinstance(cause, Exception) else cause
        return judged if isinstance(judged, Refused | Unreachable) else FileNotFoundError(path)
    if isinstance(error, (FileExistsError, UserError)):
        return error
    status = _status(error)
    told = censored(str(error)) or type(error).__name__
    if status in (404, 410):
        return FileNotFoundError(path)
    refused = isinstance(error, PermissionError) or type(error).__name__ in (
        "NoCredentialsError",
        "TokenRetrievalError",
    )
    if refused or (status is not None and 400 <= status < 500 and status not in (408, 425, 429)):
        return Refused(
            f"{path}: the store refuses: {told}; renew the token or key, or have the permission given, then run the same "
            "command again: it goes on where it stopped"
        )
    module = type(error).__module__.split(".")[0]
    if isinstance(error, OSError | EOFError) or module in (
        "aiohttp",
        "botocore",
        "requests",
        "httpx",
        "gcsfs",
        "urllib3",
    ):
        return Unreachable(f"{path}: {told} (asked {ATTEMPTS} times); the same command goes on when the store is back")
    return error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an exception of any of the cloud libraries."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if type(error).__module__ != "aiohttp.http_exceptions":  # their code 400 is said of a broken answer, by us
            codes = getattr(error, "status", None), getattr(error, "code", None), getattr(response, "status_code", None)
            if (found := next((code for code in codes if isinstance(code, int)), None)) is not None:
                return found
        error = error.__cause__
    return None


def _file_system(path: str) -> tuple[Any, str]:
    """The file system of a URI and the name there; it remembers no listings, because others write there too."""
    try:
        import fsspec

        fs, name = fsspec.core.url_to_fs(revealed(path), use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error}; pip install 'motet-pipeline[remote]' brings s3, gs, hf and https") from None
    return fs, name


def info_of(info: dict[str, Any]) -> Info:
    """What fsspec tells of a file; Refused if it does not tell the size."""
    if info.get("size") is None:
        raise Refused(f"{info.get('name')}: the server does not tell its size; copy the file to a store that does")
    keys = (
        "ETag",
        "etag",
        "generation",
        "md5Hash",
        "blob_id",
        "LastModified",
        "last_modified",
        "Last-Modified",
        "mtime",
    )
    return Info(int(info["size"]), next((str(info[key]) for key in keys if info.get(key) is not None), ""))


def read(path: str) -> bytes:
    """A whole file; FileNotFoundError if there is none."""
    return ranged(path, 0, ask(path, lambda fs, name: info_of(fs.info(name))).size)
