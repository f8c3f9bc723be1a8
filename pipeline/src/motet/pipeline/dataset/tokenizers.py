"""The tokenizers that wrote token datasets, built again from what their OUT/tokenize.yaml says and held against their specs.

datasets --`settings_of`--> settings by modality --`built`--> tokenizers, each of the hash that its spec has
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from motet.core import notation
from motet.core.errors import UserError
from motet.pipeline.dataset.commits import CONFIG
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.store import Store
from motet.tokenizers.contract import Tokenizer, TokenizerSpec
from motet.tokenizers.registry import build

Settings = dict[str, dict[str, Any]]
"""Complete settings of each modality's tokenizer, with absolute paths: `{"text": {"use": "bpe", "path": ...}}`."""


def settings_of(stores: Iterable[Store]) -> Settings:
    """What these datasets say; the first that knows a modality counts, one that says nothing is passed over."""
    found: Settings = {}
    for store in stores:
        try:
            written = notation.parsed(store.read(CONFIG).decode())
            found = {**written["tokenizers"], **found}
        except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
            continue  # written by other tools: whoever wants to use the tokenizers is told then
    return found


def built(
    settings: Settings, specs: Mapping[str, TokenizerSpec], where: str, modalities: Iterable[str] | None = None
) -> dict[str, Tokenizer]:
    """The tokenizers by modality, all or some; UserError if one is gone or is not the one that encoded the data."""
    found = {}
    for modality in specs if modalities is None else modalities:
        if modality not in settings:
            told = f"it knows {', '.join(settings)}" if settings else "it knows none"
            raise UserError(f"{where}: tokenizers: does not say which one encoded {modality}; {told}")
        found[modality] = build(settings[modality], Path("/"), modality)
        spec = specs[modality]
        if found[modality].spec.hash != spec.hash:
            raise UserError(
                f"{where}: tokenizers.{modality}: {spec.name} has changed since it encoded the data "
                f"({found[modality].spec.hash[:12]}, then {spec.hash[:12]}); put its old weights back or tokenize again"
            )
    return found


def dataset_tokenizers(manifest: Manifest, modalities: Iterable[str] | None = None) -> dict[str, Tokenizer]:
    """The tokenizers of one dataset, as `built`."""
    return built(settings_of([manifest.store]), manifest.tokenizers, f"{manifest.store}/{CONFIG}", modalities)
