"""What a shard says of itself: the modality table that its spans index, and each modality's tokenizer, in its schema.

ShardHeader --`schema`--> the Arrow schema of a shard, format version 1 --`ShardHeader.of`--> the header, or DamagedShard
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pyarrow as pa

from motet.tokenizers.contract import TokenizerSpec

FORMAT_VERSION = 1
METADATA_KEY = b"motet"


class DamagedShard(Exception):
    """Stored bytes are not what was written; the message names the file and the place."""


@dataclass(frozen=True)
class ShardHeader:
    """Schema metadata: the modality table (index = `span_modality`) and each modality's tokenizer."""

    modalities: tuple[str, ...]
    tokenizers: dict[str, TokenizerSpec]
    settings_hash: str

    @property
    def latent_dim(self) -> int:
        """Width of the latents column: 0 if no tokenizer is continuous."""
        return max((s.latent_dim for s in self.tokenizers.values()), default=0)

    def schema(self) -> pa.Schema:
        """The Arrow schema: a pure function of this header."""
        sizes = [max(s.codebooks) for s in self.tokenizers.values() if s.codebooks]
        token = pa.uint16() if max(sizes, default=0) <= 1 << 16 else pa.uint32()
        required = {"nullable": False}
        fields = [
            pa.field("sample_id", pa.binary(16), nullable=False),
            pa.field("tokens", pa.list_(pa.field("item", token, **required)), nullable=False),
            pa.field("span_end", pa.list_(pa.field("item", pa.int32(), **required)), nullable=False),
            pa.field("span_modality", pa.list_(pa.field("item", pa.uint8(), **required)), nullable=False),
            pa.field(
                "span_shape",
                pa.list_(pa.field("item", pa.list_(pa.field("item", pa.int32(), **required)), **required)),
                nullable=False,
            ),
        ]
        if self.latent_dim:
            vector = pa.list_(pa.field("item", pa.float16(), **required), self.latent_dim)
            fields.append(pa.field("latents", pa.list_(pa.field("item", vector, **required)), nullable=False))
        fields.append(pa.field("source", pa.dictionary(pa.int16(), pa.utf8()), nullable=False))
        metadata = {
            "format_version": FORMAT_VERSION,
            "modalities": list(self.modalities),
            "tokenizers": {m: s.to_json() for m, s in sorted(self.tokenizers.items())},
            "settings_hash": self.settings_hash,
        }
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})

    @classmethod
    def of(cls, schema: pa.Schema, where: str) -> ShardHeader:
        """Read the header back from a file's schema."""
        raw = (schema.metadata or {}).get(METADATA_KEY)
        if raw is None:
            raise DamagedShard(f"{where}: an Arrow file, but not a motet document shard")
        try:
            data = json.loads(raw)
            version = data["format_version"]
            if version == FORMAT_VERSION:
                specs = {m: TokenizerSpec.from_json(spec) for m, spec in data["tokenizers"].items()}
                modalities = tuple(data["modalities"])
                if set(modalities) <= set(specs):
                    return cls(modalities, specs, data["settings_hash"])
                raise KeyError(f"modalities {modalities}, tokenizers of {tuple(specs)}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedShard(f"{where}: its header is damaged: {error!r}") from None
        raise DamagedShard(f"{where}: shard format {version}; this motet reads {FORMAT_VERSION}")
