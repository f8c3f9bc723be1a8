"""Byte-level BPE text: UTF-8 bytes -> string -> ids -> string, lossless, through the fastest library that gives the same ids.

A vocabulary comes as a Hugging Face `tokenizer.json` or as tiktoken ranks. `tokenizers` reads any of the former; tiktoken
encodes several times as fast, but knows only byte-level BPE in which ranks alone decide the merges. `ranks.py` proves
for a given `tokenizer.json` that both give the same ids for every text; where it cannot, `tokenizers` encodes.
Text is data: the names of special tokens in it (`<|endoftext|>`) are encoded as the characters that they are.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from motet.core.configuration import validate
from motet.core.errors import UserError, one_line
from motet.core.hashing import content_hash
from motet.tokenizers import contract
from motet.tokenizers.contract import BadSample, Tokenizer, TokenizerSpec, Tokens
from motet.tokenizers.media import load_text
from motet.tokenizers.text.lossy import Lossy
from motet.tokenizers.text.ranks import BYTE_OF, PATTERNS, Ranks, ranks_of, token_bytes, too_blank

log = logging.getLogger(__name__)
ENCODING_PARTS = ("normalizer", "pre_tokenizer", "model", "added_tokens", "decoder")  # of a tokenizer.json


class BPE(Tokenizer):
    """Byte-level BPE over a `tokenizer.json` or tiktoken ranks.

    Attributes:
        engine: `tiktoken`, or `tokenizers` where the first is not proven to give the same ids.
        reason: why `tokenizers` encodes; empty if tiktoken does.
    """

    modality = "text"

    class Settings(contract.Settings):
        """Where the vocabulary is.

        Attributes:
            path: a folder with `tokenizer.json`, that file itself, or a file of tiktoken ranks.
            pattern: only for tiktoken ranks, which do not carry it: how text is cut before merging; `gpt2`, `cl100k`,
                `qwen2`, `o200k`, or a regular expression.
            max_unknown: share of a text's characters that may have no token, for a `tokenizer.json` that cannot say every text;
                with more the text is rejected, below that they are counted in the statistics.
        """

        path: Path
        pattern: str | None = None
        max_unknown: Annotated[float, Field(ge=0, le=1)] = 0.05

    class Fit(contract.Settings):
        """Options of `fit`.

        Attributes:
            vocabulary: number of ids wanted, 256 of which are the bytes; fewer where the text has no more to merge.
            minimum_frequency: pairs seen less often are not merged.
        """

        vocabulary: int = Field(8192, ge=256, le=2**20)
        minimum_frequency: int = Field(2, ge=1)

    def __init__(self, settings: BPE.Settings):
        path = settings.path / "tokenizer.json" if settings.path.is_dir() else settings.path
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"bpe: path: {path} does not exist; fit one with 'motet tokenizer fit bpe'") from None
        except OSError as error:
            raise UserError(f"bpe: path: {path} cannot be read: {error.strerror}") from None
        if data.lstrip()[:1] == b"{":
            self._read_json(data, path, settings.max_unknown)
        else:
            self._read_ranks(data, path, settings.pattern)
        self.spec = TokenizerSpec(
            "bpe", "text", "discrete", (len(self._bytes),), 0, None, "text/plain; charset=utf-8", self._hash
        )

    def load(self, data: bytes) -> str:
        """UTF-8 bytes as a string; `whitespace-run` where only tiktoken could encode it, and would not."""
        text = load_text(data)
        if self._slow is None and too_blank(text):
            raise BadSample("whitespace-run", "tens of thousands of whitespace characters in a row; tiktoken aborts")
        return text

    def encode(self, samples: Sequence[str]) -> list[Tokens]:
        """Ids of each text, shape `(n,)`; BadSample `unknown-characters` where the vocabulary lacks too many of it."""
        if self._counted is not None:
            return [self._counted(sample) for sample in samples]
        ids = [self._encode(sample) for sample in samples]
        return [Tokens((len(each),), each) for each in ids]

    def decode(self, tokens: Sequence[Tokens]) -> list[str]:
        """The texts; bytes that are no UTF-8 (a model may write them) become U+FFFD."""
        return [self._decode(np.asarray(each.ids).tolist()) for each in tokens]

    def dump(self, sample: str) -> bytes:
        """The text as UTF-8."""
        return sample.encode("utf-8", "replace")

    def byte_lengths(self) -> np.ndarray | None:
        """Bytes of each id; None for a `tokenizer.json` that is not byte-level, where they depend on the ids beside it."""
        return np.array([len(token) for token in self._bytes]) if self._decode == self._join else None

    @classmethod
    def fit(cls, samples: Sequence[bytes], out: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Learn merges from UTF-8 texts and write `out/tokenizer.json`; every byte is in the vocabulary.

        Returns:
            `vocabulary` (ids made), `bytes_per_token` (on the texts themselves), `megabytes`, `skipped` (samples that are
            no text) and `seconds`.
        """
        from tokenizers import Tokenizer as HuggingFace
        from tokenizers import decoders, models, pre_tokenizers, trainers

        options = validate(settings, cls.Fit, "fit bpe")
        texts, skipped = [], 0
        for sample in samples:
            try:
                texts.append(load_text(sample))
            except BadSample:
                skipped += 1
        if not texts:
            raise UserError("fit bpe: samples: none of them is UTF-8 text")
        start = time.perf_counter()
        model = HuggingFace(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=options.vocabulary,
            min_frequency=options.minimum_frequency,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=log.isEnabledFor(logging.INFO) and sys.stderr.isatty(),
        )
        model.train_from_iterator(texts, trainer, length=len(texts))
        seconds = time.perf_counter() - start
        out.mkdir(parents=True, exist_ok=True)
        (out / "tokenizer.json").write_text(model.to_str(pretty=False), encoding="utf-8")
        fitted = cls(cls.Settings(path=out))
        size = sum(len(text.encode()) for text in texts)
        count = sum(map(len, fitted.encode(texts)))
        return {
            "vocabulary": fitted.spec.codebooks[0],
            "bytes_per_token": round(size / max(count, 1), 3),
            "megabytes": round(size / 1e6, 3),
            "skipped": skipped,
            "seconds": round(seconds, 2),
        }

    def _read_json(self, data: bytes, path: Path, max_unknown: float) -> None:
        """Take a `tokenizer.json`: through tiktoken if proven the same, else through `tokenizers`."""
        from tokenizers import Tokenizer as HuggingFace

        try:
            model = HuggingFace.from_buffer(data)
        except Exception as error:  # the library raises bare Exception for every malformed file
            raise UserError(f"bpe: path: {path} is not a tokenizer.json: {one_line(error)}") from None
        # Truncation and padding would lose text; special tokens in raw text are text.
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        content = json.loads(data)
        vocabulary, everything = model.get_vocab(with_added_tokens=False), model.get_vocab(with_added_tokens=True)
        # Not the ids that the file says: where those leave a gap, the library numbers on without it.
        added = {token["content"]: everything[token["content"]] for token in content.get("added_tokens") or []}
        self._bytes = token_bytes(vocabulary, added, 1 + max(everything.values(), default=-1))
        self._hash = content_hash("bpe", 1, {part: content.get(part) for part in ENCODING_PARTS})
        byte_level = (content.get("decoder") or {}).get("type") == "ByteLevel"
        if byte_level and not BYTE_OF.keys() <= vocabulary.keys():
            raise UserError(f"bpe: path: {path} lacks some of the 256 bytes: not every text can be encoded")

        def slow(text: str) -> np.ndarray:
            return np.array(model.encode(text, add_special_tokens=False).ids, np.int32)

        self._slow = slow
        self._decode = self._join if byte_level else lambda ids: model.decode(ids, skip_special_tokens=False)
        ranks = ranks_of(content)
        if isinstance(ranks, str) and (lossy := Lossy.of(model, content, max_unknown)):
            self._counted = lossy.encode
            self._hash = content_hash(self._hash, {"max_unknown": max_unknown})
        sought = [token for token in content.get("added_tokens") or [] if not token["special"]]
        normalizer = content.get("normalizer")
        if isinstance(ranks, str):
            self.engine, self.reason, self._encode = "tokenizers", ranks, slow
        elif normalizer and (normalizer["type"] != "NFC" or any(token["normalized"] for token in sought)):
            self.engine, self.reason, self._encode = "tokenizers", "text is normalized first", slow
        else:
            self.engine, self.reason, fast = "tiktoken", "", ranks.encoder()
            names = [token["content"] for token in sought]

            def encode(text: str) -> np.ndarray:
                if too_blank(text) or (names and any(name in text for name in names)):
                    return slow(text)
                return fast(model.normalizer.normalize_str(text) if normalizer and not text.isascii() else text)

            self._encode = encode

    def _read_ranks(self, data: bytes, path: Path, pattern: str | None) -> None:
        """Take a file of tiktoken ranks: lines of base64 bytes and a rank."""
        if pattern is None:
            raise UserError(
                f"bpe: pattern: {path} holds tiktoken ranks; say how text is cut: {', '.join(PATTERNS)}, or a regex"
            )
        try:
            rows = [line.split() for line in data.splitlines() if line]
            table = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
        except (ValueError, binascii.Error):
            raise UserError(f"bpe: path: {path} is neither a tokenizer.json nor a file of tiktoken ranks") from None
        missing = [byte for byte in range(256) if bytes([byte]) not in table]
        if missing:
            raise UserError(f"bpe: path: {path} lacks {len(missing)} of the 256 bytes: not every text can be encoded")
        regex = PATTERNS.get(pattern, pattern)
        self._hash = content_hash("bpe", 1, regex, sorted((token.hex(), rank) for token, rank in table.items()))
        self._bytes = [b""] * (1 + max(table.values()))
        for token, rank in table.items():
            self._bytes[rank] = token
        self.engine, self.reason = "tiktoken", ""
        self._encode, self._decode = Ranks(regex, table).encoder(), self._join

    _encode: Callable[[str], np.ndarray]
    _decode: Callable[[list[int]], str]
    _counted: Callable[[str], Tokens] | None = None  # with what has no token; None where every text has tokens
    _slow: Callable[[str], np.ndarray] | None = None  # through `tokenizers`; None where there are only ranks

    def _join(self, ids: list[int]) -> str:
        """The text of ids: their bytes, one after another."""
        return b"".join([self._bytes[i] for i in ids]).decode("utf-8", "replace")
