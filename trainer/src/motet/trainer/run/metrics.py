"""What a run tells about itself, a row per step: metrics.jsonl, TensorBoard, a line on the terminal, a plot.

    step --row--> `MetricsLog` --> OUT/metrics.jsonl, OUT/tensorboard/
                  `Progress`   --> a bar on a terminal, plain lines in a log
    OUT/metrics.jsonl --`curves`--> OUT/curves.svg

A row's `losses` are in nats per token by modality, `diffusion` in squared error per latent value. The file holds each
step once: rows that a resumed run will compute again are cut off first.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import xxhash
from tqdm import tqdm

from motet.core import durable

if TYPE_CHECKING:
    from motet.trainer.data.batch import GroupedBatch

METRICS, CURVES = "metrics.jsonl", "curves.svg"
SECONDS_BETWEEN_LINES = 10.0

Row = dict[str, Any]


class MetricsLog:
    """The metrics of a run folder from step `step` on; rows of that step and later ones are cut off."""

    def __init__(self, out: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        rows = [json.dumps(row) + "\n" for row in read(out) if row["step"] < step]
        durable.write(out / METRICS, "".join(rows))
        self._file = open(out / METRICS, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def write(self, row: Row) -> None:
        """Add one step's row; other processes can read it at once."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in _scalars(row):
            self._board.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Bring all rows to the disk: before a checkpoint that says they are behind it."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._board.close()


def read(out: Path) -> Iterator[Row]:
    """The rows of a run folder, in order of steps; a last line cut short by a kill is left out."""
    path = out / METRICS
    if not path.exists():
        return
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def cursor_of(out: Path, step: int) -> Row | None:
    """The row of a step, or of the last one before it; None if there is none."""
    path, last = out / METRICS, None
    if path.exists():
        with open(path, "rb") as lines:
            for line in lines:  # rows begin with the step, so that all but one need no parsing
                if not line.endswith(b"\n") or int(line[len(b'{"step": ') : line.index(b",")]) > step:
                    break
                last = line
    return json.loads(last) if last else None


def hash_of_rows(batch: GroupedBatch, rows: Sequence[int]) -> int:
    """Which tokens and latents stand in which row of the global batch, as a signed 64-bit number.

    Row b of `batch` is row rows[b] of the global batch. Hashes of rows add up (modulo 2^64), so that the
    global batch's is the sum over micro-batches and ranks, however the rows were shared out. `batch` is on the CPU.

    What stands together in a row stands together among its tower's tokens too, so each row is read stretch by stretch.
    """
    place_T, values = batch.place_T.numpy(), (batch.latents_ND, batch.noise_ND, batch.time_N)
    columns = [column_T.numpy().data for column_T in (batch.ids_T, batch.position_T, batch.labels_T)]
    goes_on_T = np.diff(place_T, prepend=-2) == 1
    goes_on_T &= place_T % batch.sequence > 0
    begin_Z = np.flatnonzero(~goes_on_T)
    end_Z = np.append(begin_Z[1:], len(place_T))
    in_sequence_Z = np.argsort(place_T[begin_Z])
    stretches = np.column_stack((begin_Z, end_Z))[in_sequence_Z]
    edges = np.arange(batch.rows + 1) * batch.sequence
    first_B1 = np.searchsorted(place_T[stretches[:, 0]], edges).tolist()
    # Latents are in sequence order: where those of each row begin.
    latent_B1 = np.searchsorted(place_T[batch.latent_row_N], edges).tolist()
    total = 0
    for b in range(batch.rows):
        state = xxhash.xxh3_64(rows[b].to_bytes(8, "little"))
        own = stretches[first_B1[b] : first_B1[b + 1]].tolist()
        for column in columns:
            for begin, end in own:
                state.update(column[begin:end])
        for value_N in values:
            state.update(value_N.numpy()[latent_B1[b] : latent_B1[b + 1]].data)
        total += state.intdigest()
    return wrapped(total)


def wrapped(total: int) -> int:
    """A sum of hashes modulo 2^64, signed, as torch's int64 holds it."""
    return (total + (1 << 63)) % (1 << 64) - (1 << 63)


class Progress:
    """Tells a person how far training is: a bar if `stream` is a terminal, else a line every ten seconds.

    Call it with each row; `say` writes a line of its own.
    """

    def __init__(self, steps: int, stream: TextIO | None = None):
        self.steps, self.stream = steps, stream or sys.stderr
        self._bar: tqdm | None = None
        self._next_line = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Write one line, over the bar if there is one."""
        tqdm.write(text, file=self.stream)
        self.stream.flush()

    def __call__(self, row: Row) -> None:
        """Show one step."""
        done = row["step"] + 1
        text = f"{describe(row)}, {row['tokens_per_second']:,.0f} tokens/s"
        if row["mfu"] is not None:
            text += f", MFU {row['mfu']:.1%}"
        if self.stream.isatty():
            if self._bar is None:
                self._bar = tqdm(total=self.steps, initial=row["step"], unit="step", file=self.stream, leave=True)
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()
        elif time.monotonic() >= self._next_line or done == self.steps:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            self.say(f"step {done}/{self.steps}: {text}")


def describe(row: Row) -> str:
    """The losses of a row in words: `text 5.13, image 6.02`."""
    return ", ".join(f"{name} {value:.3f}" for name, value in row["losses"].items() if value is not None)


def curves(out: Path) -> Path:
    """Plot the losses of a run folder by modality over tokens; returns the SVG's path."""
    from matplotlib.figure import Figure

    rows = list(read(out))
    names = list(dict.fromkeys(name for row in rows for name in row["losses"]))
    figure = Figure(figsize=(4.5 * max(len(names), 1), 3.4), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), i + 1)
        for key, style in (("losses", "-"), ("heldout", "o-")):
            points = [(row["tokens"], row[key][name]) for row in rows if row.get(key, {}).get(name) is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style, label={"losses": "training"}.get(key, "held out"), lw=1, ms=4
                )
        axes.set(title=name, xlabel="tokens", ylabel="squared error" if name == "diffusion" else "nats per token")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(out / CURVES, metadata={"Date": None})
    return out / CURVES


def _scalars(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(TensorBoard tag, number) of everything in a row that is a number."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "step":
            yield prefix + key, value
