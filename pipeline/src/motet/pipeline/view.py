"""Documents as a person sees them: decoded back from their tokens into one HTML page.

manifest --pick--> documents (checked) --each modality's tokenizer: decode, dump--> templates/view.html --> HTML text
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from motet.pipeline.manifest import Manifest
from motet.pipeline.shard import Document, document_at
from motet.pipeline.stats_page import environment
from motet.tokenizers.configuration import UserError
from motet.tokenizers.contract import Tokenizer, Tokens


def spread(manifest: Manifest, count: int) -> list[Document]:
    """`count` documents, evenly spread over every source; the same ones each time."""
    sources = [s for s in manifest.sources if any(e.source == s and e.rows for e in manifest.shards)]
    found = []
    for i, source in enumerate(sources):
        entries = [e for e in manifest.shards if e.source == source and e.rows]
        rows = sum(e.rows for e in entries)
        share = min(count // len(sources) + (i < count % len(sources)), rows)
        for n in range(share):
            at = n * rows // share
            for entry in entries:
                if at < entry.rows:
                    break
                at -= entry.rows
            found.append(_document(manifest, entry, at))
    return found


def pick(manifest: Manifest, prefixes: Sequence[str]) -> list[Document]:
    """The documents whose sample ids (hex) begin so; UserError for one that names none or several."""
    found: dict[str, list[Document]] = {prefix: [] for prefix in prefixes}
    for entry in manifest.shards:
        if not entry.rows:
            continue
        shard = manifest.open_shard(entry)
        for i in range(shard.num_batches):
            batch = shard.batch(i)
            for row, sample in enumerate(batch.column("sample_id").to_pylist()):
                for prefix in prefixes:
                    if sample.hex().startswith(prefix.lower()):
                        found[prefix].append(document_at(batch, row, shard.header))
    for prefix, documents in found.items():
        if not documents:
            raise UserError(
                f"sample {prefix}: no document's id begins so; `motet view {manifest.folder}` shows some ids"
            )
        if len({d.sample_id for d in documents}) > 1:
            ids = ", ".join(sorted(d.sample_id.hex() for d in documents)[:3])
            raise UserError(f"sample {prefix}: {len(documents)} documents begin so ({ids}, ...); give more of the id")
    return [documents[0] for documents in found.values()]


def page(manifest: Manifest, documents: Sequence[Document], tokenizers: Mapping[str, Tokenizer]) -> str:
    """The page that shows these documents."""
    name = manifest.folder.resolve().name
    shown = [{"source": d.source, "sample": d.sample_id.hex(), "spans": list(_spans(d, tokenizers))} for d in documents]
    return environment.get_template("view.html").render(title=f"{name}: documents", name=name, documents=shown)


def _spans(document: Document, tokenizers: Mapping[str, Tokenizer]) -> Iterator[dict[str, Any]]:
    for modality, tokens in document.spans:
        shape = " × ".join(map(str, tokens.shape))
        yield {"modality": modality, "shape": shape, "tokens": len(tokens), **_decoded(tokens, tokenizers[modality])}


def _decoded(tokens: Tokens, tokenizer: Tokenizer) -> dict[str, Any]:
    (sample,) = tokenizer.decode([tokens])
    data, media_type = tokenizer.dump(sample), tokenizer.spec.media_type
    kind = media_type.partition("/")[0]
    text = data.decode("utf-8", "replace") if kind == "text" else None
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"kind": kind, "media_type": media_type, "text": text, "data": url}


def _document(manifest: Manifest, entry: Any, row: int) -> Document:
    shard = manifest.open_shard(entry)
    for i, rows in enumerate(entry.batch_rows):
        if row < rows:
            return document_at(shard.batch(i), row, shard.header)
        row -= rows
    raise IndexError(row)
