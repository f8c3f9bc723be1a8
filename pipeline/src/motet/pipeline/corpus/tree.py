"""What lies below a folder, and where links from there may lead.

    folder or URI --`walk`--> {name: size and version}, sorted;  hidden, unreadable, dangling, leading out --> Rest

Links are followed, under their own names, inside the folder, inside what the user names as `root`, and into the stores in which
tools keep what their links mean: `blobs` of Hugging Face's hub cache, `.git/annex`, `.dvc/cache`.
"""

from __future__ import annotations

import errno
import os
from stat import S_ISDIR, S_ISREG

from motet.pipeline.corpus import local
from motet.pipeline.corpus.files import Info, info_of, is_remote
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.remote import ask

HIDDEN = "its name begins with a dot"
SHOW = "rename it, or name it as the path"


def bounds(root: str, also: str | None = None) -> tuple[str, ...]:
    """Real paths of the folders that links below a local `root` may lead into."""
    found = [os.path.realpath(root)]
    if also and not is_remote(also):
        found.append(os.path.realpath(also))
    for start in dict.fromkeys((os.path.abspath(root), found[0])):
        folder, last = start, ""
        while folder != last:
            stores = [os.path.join(folder, ".git/annex"), os.path.join(folder, ".dvc/cache")]
            if os.path.basename(folder) == "snapshots":
                stores.append(os.path.join(os.path.dirname(folder), "blobs"))
            found += [os.path.realpath(store) for store in stores if os.path.isdir(store)]
            folder, last = os.path.dirname(folder), folder
    return tuple(dict.fromkeys(found))


def within(path: str, folders: tuple[str, ...]) -> bool:
    """Whether a real path is one of these folders or below one."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def walk(root: str, rest: Rest | None = None, also: str | None = None) -> dict[str, Info]:
    """Every file below a folder, by relative name, sorted. What is not listed is told to `rest`."""
    rest = rest if rest is not None else Rest()
    found: dict[str, Info] = {}
    if is_remote(root):
        place, infos = ask(root, lambda fs, name: (name, fs.find(name, detail=True)))
        for full, info in infos.items():
            name, told = full[len(place) :].lstrip("/"), info_of(info)
            if any(part.startswith(".") for part in name.split("/")):
                _hidden(name, told.size, rest)
            else:
                found[name] = told
    else:
        _local(root, bounds(root, also), rest, found)
    return {name: found[name] for name in sorted(found)}


def _local(root: str, allowed: tuple[str, ...], rest: Rest, found: dict[str, Info]) -> None:
    """One folder after the other, without recursion: no depth is too deep."""
    waiting = [""]
    seen = {os.path.realpath(root)}
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below)) as entries:
                there = sorted(entries, key=lambda entry: entry.name)
        except PermissionError:
            why = "its permissions do not let this user list it"
            rest.add("folder", "folders that cannot be read", below, why, "give the permission (chmod u+rx)")
            continue
        for entry in there:
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.name.startswith("."):
                _hidden(name, _size(entry), rest)
                continue
            link = entry.is_symlink()
            real = os.path.realpath(entry.path) if link else ""
            if link and not within(real, allowed):
                cure = "name as `root` a folder that holds both the link and what it leads to"
                rest.add("link", "links that lead out of the folder", name, "what they lead to may be anything", cure)
                continue
            try:
                status = entry.stat()
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EACCES):
                    raise local.unanswered(entry.path, error) from None
                why = f"{error.strerror}: what they lead to cannot be found" if link else str(error.strerror)
                if link:
                    cure = "fetch what they stand for (git annex get, dvc pull), or remove them"
                    rest.add("link", "links that lead nowhere", name, why, cure)
                else:
                    rest.add("file", "files that cannot be read", name, why, "give the permission")
                continue
            if S_ISDIR(status.st_mode):
                if not link:
                    waiting.append(name)
                elif within(real, allowed[:1]) or real in seen:
                    why = "what they lead to is read under its own name"
                    rest.add("link", "links to folders of the same source", name, why, "none is needed")
                else:
                    seen.add(real)
                    waiting.append(name)
            elif S_ISREG(status.st_mode):
                found[name] = Info(status.st_size, str(status.st_mtime_ns))
            else:
                rest.add(
                    "file", "pipes, sockets and devices", name, "they hold no bytes of their own", "copy what they give"
                )


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
    except OSError:
        return 0


def _hidden(name: str, size: int, rest: Rest) -> None:
    folder = next((part for part in name.split("/")[:-1] if part.startswith(".")), None)
    if folder is not None:  # of a remote listing, which names files only
        rest.add("folder", f"files in hidden folders '{folder}'", name, HIDDEN, SHOW, size=size)
    else:
        rest.add("file", "hidden files and folders", name, HIDDEN, SHOW, size=size)
