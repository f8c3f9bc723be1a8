"""The partitions of a corpus: cut by what it is, never by workers or engines.

    corpus entries --`partitions`--> Partition (files and ranges, in a fixed order, with versions) --`Partition.key`--> commit

A partition is the unit of work, of retry and of a shard; how a source is cut is its format's affair (`sources`). The
version of a file (size and time of modification, or ETag) goes into the partition's key, so that a changed file is
tokenized again, and only it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from motet.core.errors import UserError
from motet.pipeline.corpus import files, local, sources
from motet.pipeline.corpus.patterns import PATTERN, expand, fixed_part
from motet.pipeline.corpus.sources.sample import Partition
from motet.pipeline.dataset.left_out import Rest
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.remote import secrets_of


def partitions(config: TokenizeConfig, base: Path, rests: Mapping[str, Rest] | None = None) -> list[Partition]:
    """All of them, in order; UserError for anything in the configuration that does not exist. What a source leaves out is
    added to its rest in `rests`, by its name.
    """
    found: list[Partition] = []
    names: set[str] = set()
    for i, entry in enumerate(config.corpus):
        where = f"corpus.{i} ({entry.name})"
        if entry.name in names:
            raise UserError(f"{where}: name: another entry is called so too; choose a name of its own")
        names.add(entry.name)
        sources.refuse_unused(entry, where)
        try:
            entry = sources.absolute(entry, base)
            path = entry.path
            if not files.is_remote(path) and os.path.exists(path) and not os.access(path, os.R_OK):
                raise UserError(f"{where}: path: {path} cannot be read; check its permissions")
            if not files.is_remote(path) and expand(path) == [path] and files.stat(path) is None:
                raise FileNotFoundError(path)
            for modality in sources.needed(entry, where):
                if modality not in config.tokenizers:
                    raise UserError(f"{where}: there is no tokenizer for '{modality}'; add one under tokenizers")
            cuts = sources.cut(entry, config, where, (rests or {}).get(entry.name))
        except FileNotFoundError as error:
            missing = error.filename or error
            raise UserError(
                f"{where}: path: {missing} does not exist; paths are relative to the configuration file"
            ) from None
        except local.Unanswered as error:
            raise UserError(f"{where}: {error}") from None
        except OSError as error:
            name, why = error.filename or entry.path, error.strerror or error
            raise UserError(f"{where}: path: {name}: {why}; correct it, or leave it out of path") from None
        except ValueError as error:
            raise UserError(f"{where}: path: {entry.path!r} cannot be a path: {error}") from None
        if not cuts:
            raise UserError(f"{where}: path: {path} {_nothing(path)}")
        found += [Partition(entry=entry, index=i, secrets=_secrets(cut), **vars(cut)) for i, cut in enumerate(cuts)]
    return found


def _nothing(path: str) -> str:
    """Why there is nothing to tokenize, and what may be done."""
    if not PATTERN.search(path) or os.path.exists(path):
        return "holds nothing to tokenize; correct it or remove the entry"
    folder = fixed_part(path)
    if not files.is_remote(path) and not os.path.isdir(folder):
        return f"matches no file: there is no folder {folder}; paths are relative to the configuration file"
    brackets = "; [ab] means a or b, and [[] a bracket itself" * ("[" in path)
    return f"matches no file below {folder}{brackets}; correct it or remove the entry"


def _secrets(cut: sources.Cut) -> dict[str, str]:
    if not files.is_remote(cut.root):
        return {}
    return secrets_of([cut.root, *([cut.span[0]] if cut.span else (files.join(cut.root, name) for name in cut.files))])
