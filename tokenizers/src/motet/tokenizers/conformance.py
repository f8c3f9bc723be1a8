"""The conformance kit: any tokenizer and a few real files -> a list of checks, each passed or not, with what was seen.

It asks of a tokenizer what the pipeline relies on: right shapes and ranges, the same tokens every time, whatever else is
in the batch and wherever the weights lie, and `BadSample` (nothing else) for hostile files. A plug-in's own tests need
one line: `assert check(make, samples).passed`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from motet.core.errors import UserError
from motet.tokenizers import registry
from motet.tokenizers.contract import BadSample, Tokenizer, TokenizerSpec, Tokens

FLIPS = 1e-3  # share of ids that rounding in another batch may change
ROUNDING = 1e-2  # of a latent's standard deviation


@dataclass(frozen=True)
class Check:
    """One question asked: its name, the answer, and what was seen."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All checks of one tokenizer."""

    spec: TokenizerSpec
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        lines = [f"{'ok  ' if c.passed else 'FAIL'}  {c.name:<16}  {c.detail}" for c in self.checks]
        return "\n".join([f"{self.spec.name} ({self.spec.modality}, {self.spec.hash[:12]})", *lines])


class FindingError(AssertionError):
    """A check's finding: the tokenizer does not do what the contract says."""


def check_settings(settings: Mapping[str, Any], base: Path, samples: Sequence[bytes]) -> Report:
    """Check the tokenizer that `settings` describe, and that its hash is the same where a copy of its files lies."""
    complete = registry.absolute(settings, base)
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = dict(complete)
        source = Path(str(complete.get("path", "")))
        if source.is_absolute() and source.exists():
            target = Path(folder, f"a copy of {source.name}")
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
            elsewhere["path"] = str(target)
        return check(lambda: registry.build(complete, base), samples, lambda: registry.build(elsewhere, base))


def check(
    make: Callable[[], Tokenizer], samples: Sequence[bytes], make_elsewhere: Callable[[], Tokenizer] | None = None
) -> Report:
    """Ask everything of a tokenizer.

    Args:
        make: builds a fresh instance.
        samples: raw files of its modality, at least two, all sound.
        make_elsewhere: builds it from a copy of its files in another place; `make` if it has no files.
    """
    if len(samples) < 2:
        raise UserError("samples: the kit needs at least two, to see whether they influence each other")
    one, other = make(), (make_elsewhere or make)()
    exam = _Exam(one, other, samples)
    return Report(one.spec, tuple(exam.run()))


class _Exam:
    """The questions; what an earlier one found out (samples, tokens) serves the later ones."""

    def __init__(self, one: Tokenizer, other: Tokenizer, files: Sequence[bytes]):
        self.one, self.other, self.files = one, other, files

    def run(self) -> Iterator[Check]:
        """All answers in order; after a failed load or encode the rest has nothing to stand on."""
        questions = [
            self.spec,
            self.hash,
            self.load,
            self.shapes,
            self.ranges,
            self.determinism,
            self.batches,
            self.round_trip,
            self.any_tokens,
            self.hostile,
        ]
        for question in questions:
            name = question.__name__.replace("_", " ")
            try:
                yield Check(name, True, question())
            except Exception as error:  # whatever a tokenizer raises here is its finding
                kind = "" if isinstance(error, FindingError) else f"{type(error).__name__}: "
                yield Check(name, False, f"{kind}{error}")
                if question in (self.load, self.shapes):
                    return

    def spec(self) -> str:
        """Is the spec complete and does it survive JSON?"""
        spec = self.one.spec
        _ask(TokenizerSpec.from_json(spec.to_json()) == spec, "spec changes when written as JSON and read back")
        _ask(spec.modality == self.one.modality, f"spec says {spec.modality}, the class {self.one.modality}")
        if spec.kind == "discrete":
            _ask(bool(spec.codebooks) and min(spec.codebooks) > 0, f"codebooks {spec.codebooks}")
            _ask(spec.latent_dim == 0, f"discrete, but latent_dim is {spec.latent_dim}")
            return f"discrete, codebooks {spec.codebooks}"
        _ask(spec.kind == "continuous" and spec.latent_dim > 0, f"kind {spec.kind!r}, latent_dim {spec.latent_dim}")
        _ask(not spec.codebooks, f"continuous, but codebooks {spec.codebooks}")
        return f"continuous, latents of {spec.latent_dim}"

    def hash(self) -> str:
        """Do two instances, one of them from a copy elsewhere, have one hash?"""
        _ask(len(self.one.spec.hash) >= 16, f"hash {self.one.spec.hash!r} is too short to tell tokenizers apart")
        _ask(self.one.spec == self.other.spec, f"two instances differ: {self.one.spec} and {self.other.spec}")
        return self.one.spec.hash

    def load(self) -> str:
        """Do the samples load?"""
        self.samples = [self.one.load(file) for file in self.files]
        return f"{len(self.samples)} samples"

    def shapes(self) -> str:
        """Do grids, arrays and types agree with the spec?"""
        self.tokens = self.one.encode(self.samples)
        _ask(len(self.tokens) == len(self.samples), f"{len(self.tokens)} results for {len(self.samples)} samples")
        for tokens in self.tokens:
            _ask_shape(tokens, self.one.spec)
        return ", ".join(str(tokens.shape) for tokens in self.tokens[:4])

    def ranges(self) -> str:
        """Does every id lie in its codebook, is every latent finite?"""
        spec = self.one.spec
        for tokens in self.tokens:
            if tokens.latents is not None:
                _ask(bool(np.isfinite(tokens.latents).all()), "latents are not all finite")
            elif tokens.ids is not None and len(tokens.ids):
                by_codebook = tokens.ids.reshape(-1, len(spec.codebooks))
                low, high = by_codebook.min(), by_codebook.max(axis=0)
                _ask(low >= 0 and bool((high < spec.codebooks).all()), f"ids from {low} to {high} in {spec.codebooks}")
        return f"{sum(map(len, self.tokens))} tokens"

    def determinism(self) -> str:
        """The same tokens again, and from another instance?"""
        for name, again in (("again", self.one), ("another instance", self.other)):
            different = [i for i, t in enumerate(again.encode(self.samples)) if not _same(t, self.tokens[i])]
            _ask(not different, f"{name}: other tokens for samples {different}")
        return "identical again, and from another instance"

    def batches(self) -> str:
        """The same tokens alone and in reverse order?"""
        alone = [self.one.encode([sample])[0] for sample in self.samples]
        reverse = self.one.encode(self.samples[::-1])[::-1]
        worst = max(_difference(a, b) for batch in (alone, reverse) for a, b in zip(batch, self.tokens, strict=True))
        limit = FLIPS if self.one.spec.kind == "discrete" else ROUNDING
        _ask(
            worst <= limit,
            f"a sample's tokens depend on the batch: {worst:.2g}, at most {limit:g} may come of rounding",
        )
        return "identical alone and in reverse order" if worst == 0 else f"within rounding ({worst:.2g})"

    def round_trip(self) -> str:
        """Do tokens decode to files that load and encode again; is text exact?"""
        back = self.one.decode(self.tokens)
        _ask(len(back) == len(self.tokens), f"{len(back)} samples from {len(self.tokens)} tokens")
        if self.one.modality == "text":
            _ask(back == self.samples, "text does not come back as it was")
            return "exact"
        again = self.one.encode([self.one.load(self.one.dump(sample)) for sample in back])
        kept = [_difference(a, b) == 0 for a, b in zip(again, self.tokens, strict=True)]
        same_grid = sum(a.shape == b.shape for a, b in zip(again, self.tokens, strict=True))
        return (
            f"files of type {self.one.spec.media_type}; encoded again: {same_grid} same grid, {sum(kept)} same tokens"
        )

    def any_tokens(self) -> str:
        """Does anything a model may write decode? Random tokens on the grids seen."""
        generator = np.random.default_rng(0)
        random = [_random_like(tokens, self.one.spec, generator) for tokens in self.tokens]
        for sample in self.one.decode(random):
            self.one.dump(sample)
        return f"{len(random)} grids of random tokens decode"

    def hostile(self) -> str:
        """Do broken files give BadSample and nothing else?"""
        generator = np.random.default_rng(0)
        sizes = (1, 64, 4096, 65_536)
        broken = [b"", *(generator.bytes(size - 1) + b"\xff" for size in sizes)]
        for data in broken:
            _ask(self._refused(data), f"{len(data)} random bytes were taken for a {self.one.modality} sample")
        cuts = [file[: len(file) // part] for file in self.files for part in (2, 3, 20) if len(file) >= part]
        refused = sum(self._refused(cut) for cut in cuts)
        if not self.one.spec.media_type.startswith("text/"):  # half a text is a text
            _ask(refused == len(cuts), f"{len(cuts) - refused} of {len(cuts)} files cut short were taken as whole")
        return f"{len(broken)} of {len(broken)} broken files refused, {refused} of {len(cuts)} cut short"

    def _refused(self, data: bytes) -> bool:
        """Whether this file gives BadSample; one that loads must then encode."""
        try:
            sample = self.one.load(data)
        except BadSample as error:
            _ask(bool(error.reason) and " " not in error.reason, f"reason {error.reason!r} is not a short fixed word")
            return True
        _ask_shape(self.one.encode([sample])[0], self.one.spec)
        return False


def _ask(truth: bool, finding: str) -> None:
    if not truth:
        raise FindingError(finding)


def _ask_shape(tokens: Tokens, spec: TokenizerSpec) -> None:
    """The grid, the arrays and their types agree with each other and with the spec."""
    _ask(all(isinstance(side, int) and side >= 0 for side in tokens.shape), f"shape {tokens.shape!r} is not a grid")
    if spec.kind == "discrete":
        _ask(tokens.latents is None and tokens.ids is not None, "discrete tokens have ids and no latents")
        assert tokens.ids is not None
        _ask(tokens.ids.dtype == np.int32, f"ids are {tokens.ids.dtype}, not int32")
        _ask(tokens.ids.shape == (len(tokens),), f"ids {tokens.ids.shape} for the grid {tokens.shape}")
        if len(spec.codebooks) > 1:
            _ask(tokens.shape[-1] == len(spec.codebooks), f"grid {tokens.shape} for {len(spec.codebooks)} codebooks")
    else:
        _ask(tokens.ids is None and tokens.latents is not None, "continuous tokens have latents and no ids")
        assert tokens.latents is not None
        _ask(tokens.latents.dtype == np.float16, f"latents are {tokens.latents.dtype}, not float16")
        expected = (len(tokens), spec.latent_dim)
        _ask(tokens.latents.shape == expected, f"latents {tokens.latents.shape}, expected {expected}")


def _same(one: Tokens, other: Tokens) -> bool:
    return one.shape == other.shape and _difference(one, other) == 0


def _difference(one: Tokens, other: Tokens) -> float:
    """Share of ids that differ, or the largest difference of latents in standard deviations; infinite if the grids do."""
    if one.shape != other.shape:
        return float("inf")
    if not len(one):
        return 0.0
    if one.ids is not None and other.ids is not None:
        return float((one.ids != other.ids).mean())
    assert one.latents is not None and other.latents is not None
    a, b = one.latents.astype(np.float64), other.latents.astype(np.float64)
    return float(np.abs(a - b).max() / max(a.std(), 1e-6))


def _random_like(tokens: Tokens, spec: TokenizerSpec, generator: np.random.Generator) -> Tokens:
    """Random tokens on the same grid."""
    if spec.kind == "continuous":
        return Tokens(tokens.shape, latents=generator.normal(size=(len(tokens), spec.latent_dim)).astype(np.float16))
    rows = len(tokens) // len(spec.codebooks)
    ids = generator.integers(0, spec.codebooks, size=(rows, len(spec.codebooks)))
    return Tokens(tokens.shape, ids.flatten().astype(np.int32))
