"""Which samples a training step learned from, told by its number.

    OUT/train.yaml + the step's cursor in OUT/metrics.jsonl --order of one window--> pieces --> samples, and where they lie

Nothing was noted of a step but its cursor: order is a formula, so its rows come out again. Steps that have not been
trained yet can be asked for too; they are packed from the last one that has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from motet.core.errors import UserError
from motet.trainer.config import load
from motet.trainer.data.opened import Opened
from motet.trainer.data.order import Cursor
from motet.trainer.run.folder import CONFIG
from motet.trainer.run.metrics import cursor_of


def why(out: Path, step: int) -> dict[str, Any]:
    """The samples behind step `step` (from 0) of the run folder `out`.

    Returns `step`, `batch` (the hash of the global batch that metrics.jsonl has; None for a step to come) and `pieces`: of
    each its `row` in the global batch, `source`, `sample` (its id, which `motet view` takes), `dataset`, `shard`,
    `record_batch` and `document` in it, the stretch [`begin`, `end`) of its rendered tokens, `epoch`, and whether it
    stands `flipped`. UserError if there is no such run; DamagedShard if the data is not what was written.
    """
    if not (out / CONFIG).exists():
        raise UserError(f"{out}: holds no training run (no {CONFIG}); give the folder that `motet train --out` had")
    if step < 0:
        raise UserError(f"step {step}: steps count from 0")
    config = load(out / CONFIG)
    order = Opened.of(config.data, config.rows, config.seed, out).order
    corpus = order.corpus
    found = cursor_of(out, step)
    if found:
        order.remember(Cursor.from_json(found["cursor"]))
    chosen = order.rows_of(step)
    documents = chosen.documents
    pieces = []
    for row, inside in enumerate(chosen.rows):
        for piece in inside:
            number = int(documents.number_D[piece.document])
            dataset, shard, record_batch, document = corpus.records.origin(number)
            sample = b"".join(int(half).to_bytes(8, "big") for half in documents.sample_D2[piece.document])
            pieces.append(
                {
                    "row": row,
                    "source": corpus.sources[documents.source_D[piece.document]],
                    "sample": sample.hex(),
                    "dataset": dataset,
                    "shard": shard,
                    "record_batch": record_batch,
                    "document": document,
                    "begin": piece.begin,
                    "end": piece.end,
                    "epoch": piece.epoch,
                    "flipped": piece.flipped,
                }
            )
    done = found is not None and found["step"] == step
    return {"step": step, "batch": found["batch"] if found and done else None, "pieces": pieces}


def lines(told: dict[str, Any]) -> list[str]:
    """The same for a person, a piece a line; nothing is cut short, so that ids can be copied."""
    batch = f"global batch {told['batch']}" if told["batch"] else "not trained yet"
    cells = [("row", "source", "sample", "tokens", "epoch", "where")]
    for piece in told["pieces"]:
        turned = " turned" if piece["flipped"] else ""
        where = f"{piece['shard']}, record batch {piece['record_batch']}, document {piece['document']}"
        tokens = f"{piece['begin']}-{piece['end']}{turned}"
        cells.append((str(piece["row"]), piece["source"], piece["sample"], tokens, str(piece["epoch"]), where))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    datasets = ", ".join(dict.fromkeys(piece["dataset"] for piece in told["pieces"]))
    return [f"Step {told['step']}: {batch}; `motet view {datasets} SAMPLE` shows a sample", *shown]
