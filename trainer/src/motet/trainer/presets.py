"""The paper's model sizes by name (arXiv 2411.04996, Tables 1, 2 and 4): `model: {preset: chameleon-443M}`.

    {preset: NAME, ...} --`filled_in`--> {dim, layers, heads, ...}; what is given beside the name stays as it is given

The numbers in the names are parameters of the dense model with the vocabulary of the paper's setting: 65,536 ids for
Chameleon, with or without speech (then a third tower), 32,000 for Transfusion.
"""

from __future__ import annotations

from typing import Any

SHAPES = {
    "chameleon-37M": (256, 4, 8),
    "chameleon-94M": (512, 8, 8),
    "chameleon-443M": (1024, 24, 16),
    "chameleon-880M": (1536, 24, 24),
    "chameleon-1.5B": (2048, 24, 16),
    "chameleon-7B": (4096, 32, 32),
    "transfusion-163M": (768, 16, 12),
    "transfusion-760M": (1536, 24, 24),
    "transfusion-1.4B": (2048, 24, 16),
    "transfusion-7B": (4096, 32, 32),
}
"""(dim, layers, heads) by name."""


def filled_in(model: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model with its `preset`, if it has one, spelled out; ValueError for an unknown name."""
    if "preset" not in model:
        return model
    rest = {key: value for key, value in model.items() if key != "preset"}
    shape = SHAPES.get(model["preset"])
    if shape is None:
        raise ValueError(f"preset {model['preset']!r} is not known; there are {', '.join(SHAPES)}")
    return dict(zip(("dim", "layers", "heads"), shape, strict=True)) | rest
