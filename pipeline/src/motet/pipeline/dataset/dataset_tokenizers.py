"""The tokenizers that wrote a token dataset, built again from its OUT/tokenize.yaml and held against its manifest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from motet.core.configuration import load_config
from motet.core.errors import UserError
from motet.pipeline.dataset.commits import CONFIG
from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.job.config import TokenizeConfig
from motet.tokenizers.contract import Tokenizer
from motet.tokenizers.registry import build


def dataset_tokenizers(manifest: Manifest, modalities: Iterable[str] | None = None) -> dict[str, Tokenizer]:
    """A dataset's tokenizers by modality, all or some; UserError if one is gone or is not the one that encoded it."""
    where = f"{manifest.store}/{CONFIG}"
    try:
        with manifest.store.local(CONFIG) as path:
            config = load_config(path, TokenizeConfig)
    except FileNotFoundError:
        raise UserError(f"{where}: is missing: it says which tokenizers wrote the dataset") from None
    found = {}
    for modality in manifest.tokenizers if modalities is None else modalities:
        if modality not in config.tokenizers:
            raise UserError(f"{where}: tokenizers: no '{modality}'; the dataset knows {', '.join(config.tokenizers)}")
        found[modality] = build(config.tokenizers[modality], Path("/"), modality)
        spec = manifest.tokenizers[modality]
        if found[modality].spec.hash != spec.hash:
            raise UserError(
                f"{where}: tokenizers.{modality}: {spec.name} has changed since it encoded this dataset "
                f"({found[modality].spec.hash[:12]}, then {spec.hash[:12]}); put its old weights back or tokenize again"
            )
    return found
