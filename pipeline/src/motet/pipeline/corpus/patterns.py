"""What a path of a corpus means: one file, or the many of a pattern, on disk or behind a URI.

shards/{000..127}.tar, *.parquet, **/a?.jsonl --`listed`--> the folder they lie in, {name: size and version}

A folder that is there under its own name, as `data [v2]`, is that folder; a pattern begins after it.
"""

from __future__ import annotations

import glob
import os
import re
from fnmatch import fnmatchcase

from motet.pipeline.corpus.files import Info, entries, is_remote, join, listing, stat
from motet.pipeline.corpus.tree import walk
from motet.pipeline.remote import concealed, revealed

PATTERN = re.compile(r"[*?\[{]")
"""What makes a name a pattern."""


def listed(path: str) -> tuple[str, dict[str, Info]]:
    """(folder, {name below it: size and version}) of the files that a path or pattern means; FileNotFoundError names
    the first that is not there.
    """
    found = expand(path)
    root = path.rpartition("/")[0] or "/" if found == [path] else fixed_part(path)
    look = listing(root) if len(found) > 1 else lambda name: stat(join(root, name))
    infos: dict[str, Info] = {}
    for one in found:
        name = one[len(root.rstrip("/")) + 1 :]
        info = look(name)
        if info is None:
            raise FileNotFoundError(one)
        infos[name] = info
    return root, infos


def fixed_part(path: str) -> str:
    """The folder that all files of a pattern lie in; of a plain path, the folder of the file."""
    parts = path.split("/")
    begin = _literal(path).count("/")
    patterned = [i for i, part in enumerate(parts) if i >= begin and PATTERN.search(part)]
    return "/".join(parts[: patterned[0]] if patterned else parts[:-1]) or "/"


def expand(path: str) -> list[str]:
    """The files that a pattern means: braces ({000..127}, {a,b}) in their order, then *, ?, [] and ** sorted."""
    if not is_remote(path) and os.path.exists(path):
        return [path]
    literal, found = _literal(path), list[str]()
    if literal and PATTERN.search(literal):
        for one in _braces(path[len(literal) :]):
            some = glob.glob(glob.escape(literal) + one, recursive=True)
            found += sorted(some) if re.search(r"[*?\[]", one) else [literal + one]
        return found
    for one in _braces(revealed(path)):
        if not re.search(r"[*?\[]", one) or re.match(r"https?://", one):
            found.append(concealed(one))
        elif is_remote(one):
            found += sorted(_matching(concealed(one)))
        else:
            found += sorted(glob.glob(one, recursive=True))
    return found


def _literal(path: str) -> str:
    """The beginning of a local path that is a folder by its own name, with its last slash."""
    end = 0
    if not is_remote(path):
        while (slash := path.find("/", end)) >= 0 and os.path.isdir(path[: slash + 1]):
            end = slash + 1
    return path[:end]


def _matching(pattern: str) -> list[str]:
    """The remote files of a pattern. fsspec's own `glob` leaves out, without a word, the folders that did not answer."""
    fixed = fixed_part(pattern)
    parts = pattern[len(fixed) + 1 :].split("/")
    folders = [fixed]
    for i, part in enumerate(parts):
        if part == "**":
            rest = parts[i + 1 :]
            return [
                join(folder, name)
                for folder in folders
                for name in walk(folder)
                if (beyond := len(names := name.split("/")) - len(rest)) >= 0
                and all(map(fnmatchcase, names[beyond:], rest))
            ]
        wanted = "file" if i == len(parts) - 1 else "directory"
        folders = [
            join(folder, name)
            for folder in folders
            for name, info in entries(folder).items()
            if info["type"] == wanted
            and (name == part or (fnmatchcase(name, part) and (name[0] != "." or part[0] == ".")))
        ]
    return folders


def _braces(path: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", path)
    if not match:
        return [path]
    inner = match[1]
    if run := re.fullmatch(r"(\d+)\.\.(\d+)", inner):
        width = max(len(part) for part in run.groups() if part.startswith("0")) if re.search(r"\b0\d", inner) else 0
        first, last = int(run[1]), int(run[2])
        if abs(last - first) >= 10_000_000:
            raise ValueError(f"{{{inner}}} means more than ten million files")
        step = 1 if last >= first else -1
        options = [f"{i:0{width}d}" for i in range(first, last + step, step)]
    elif "," in inner:
        options = inner.split(",")
    else:  # no braces of a pattern: they are a part of the name
        return [path[: match.end()] + rest for rest in _braces(path[match.end() :])]
    return [path[: match.start()] + option + rest for option in options for rest in _braces(path[match.end() :])]
