"""The training loop: `train` is the whole of it, from token datasets to checkpoints.

    order of training -> loader --micro-batches--> MoT -> losses --backward--> gradient --clip--> AdamW -> weights
                                                                       step --row--> metrics; now and then: checkpoint

The step's number is the only cursor: a run that was killed goes on from its last checkpoint with the batches, noise and
learning rate of that step, and gives on a CPU in float32 the same losses to the byte as one that never was. Several
processes (`torch.distributed`, set up by a launcher) share each global batch: their losses are divided by the global
counts already, so gradients are added up, not averaged. Nothing here knows who started them.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from motet.core.errors import UserError
from motet.trainer.config import TrainConfig
from motet.trainer.data import damage
from motet.trainer.data.batch import GroupedBatch
from motet.trainer.data.order import Cursor, Damage
from motet.trainer.data.records import LostBatches
from motet.trainer.model.flops import batch_flops, peak
from motet.trainer.objective.tally import means
from motet.trainer.run.folder import claimed, keep
from motet.trainer.run.metrics import MetricsLog, Row, hash_of_rows, wrapped
from motet.trainer.run.optimizer import gradient_norm, learning_rate, set_learning_rate
from motet.trainer.run.parallel import add_up, any_of, gathered, together, together_refused
from motet.trainer.run.saving import Saver
from motet.trainer.run.sharding import reducing
from motet.trainer.run.state import Run

PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float8": torch.bfloat16}
"""What autocast computes in."""

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    out: str | Path,
    rank: int = 0,
    world: int = 1,
    on_step: Callable[[Row], None] | None = None,
    say: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Train in the run folder `out`, from its last checkpoint if it has one, to the last step or the first signal.

    Args:
        config: the run; relative data paths count from the working directory.
        out: the run folder; see `folder`.
        rank: this process among those that share each global batch.
        world: how many they are; `torch.distributed` has been set up if more than one.
        on_step: called on rank 0 with each step's row of metrics, once it is written.
        say: called with what a person should know.

    Returns a summary: `out`, `rank`, `step` done of `steps`, `finished`, `resumed_from` (a step), `tokens`. UserError if
    configuration, data and folder do not fit; DamagedShard and DamagedCheckpoint name bytes that have changed.
    """
    out = Path(out)
    if config.rows % (config.micro_rows * world):
        raise UserError(
            f"rows {config.rows} must be a multiple of micro_rows x ranks = {config.micro_rows} x {world}: change rows, micro_rows "
            "or the number of processes"
        )
    with ExitStack() as stack:
        with together(world):
            if rank == 0:
                stack.enter_context(claimed(out, config))
            run = Run.open(config, out, rank, world)
            if rank == 0:
                keep(out, config)
                if run.first_loss is not None:
                    say(
                        f"{config.start}: every tower is a copy; text loss before training {run.first_loss:.4f}, as dense"
                    )
        start = run.step
        if start == config.steps:
            say(f"{out}: this run is finished, all {config.steps} steps: nothing to do")
        else:
            if start:
                say(f"{out}: going on after step {start} of {config.steps}")
            stack.enter_context(_cpu_threads(run.threads))
            signals = stack.enter_context(_signals(say))
            metrics = stack.enter_context(MetricsLog(out, start)) if rank == 0 else None
            _loop(run, rank, world, metrics, signals, on_step, say)
            if run.step < config.steps:
                say(f"stopped and saved after step {run.step} of {config.steps}; the same command goes on from there")
    return {
        "out": str(out),
        "rank": rank,
        "step": run.step,
        "steps": config.steps,
        "finished": run.step == config.steps,
        "resumed_from": start,
        "tokens": run.tokens,
    }


def _loop(
    run: Run,
    rank: int,
    world: int,
    metrics: MetricsLog | None,
    signals: list[int],
    on_step: Callable[[Row], None] | None,
    say: Callable[[str], None],
) -> None:
    config, device = run.config, run.device
    best = peak(str(device), PRECISION[config.precision], run.threads) if metrics else None
    began = time.perf_counter()
    with Saver(run.out, config.keep, config.failed_saves, say, rank, world) as saver:
        for work in _ahead(run, rank, world, say):
            rate = learning_rate(run.step, config.steps, config.optimizer)
            tally, norm = _learn(run, work, rate)

            # The only moment at which the host waits for the device.
            norm, loss, *tally_2K = torch.cat((norm.double().view(1), add_up(tally, world))).tolist()
            host = torch.tensor([work.hash, work.tokens, work.flops, len(signals), saver.ready])
            batch, tokens, flops, stop, written = add_up(host, world).tolist()
            _check_finite(run, loss, norm)
            run.step, run.tokens = run.step + 1, run.tokens + tokens
            seconds = time.perf_counter() - began
            last = stop or run.step == config.steps
            row: Row = {
                "step": run.step - 1,
                "loss": loss,
                "losses": means(run.losses, tally_2K),
                "lr": rate,
                "grad_norm": norm,
                "tokens": run.tokens,
                "batch": f"{batch % (1 << 64):016x}",
                "seconds": round(seconds, 6),
                "tokens_per_second": round(tokens / seconds, 1),
                "mfu": flops / (best.flops * world * seconds) if best else None,
                "cursor": work.cursor,
            }
            with together(world):
                if config.evaluate_every and run.step % config.evaluate_every == 0 and (metrics or run.sharded):
                    row["heldout"] = run.heldout_losses()
            saves = last or run.step % config.checkpoint_every == 0
            with together(world):
                if metrics:
                    metrics.write(row)
                    if saves:
                        metrics.sync()
            if saves:
                run.save(saver, work.cursor)
            elif written == world:
                saver.finish()
            with together(world):
                if metrics and on_step:
                    on_step(row)
            if last:
                return
            began = time.perf_counter()


@dataclass(frozen=True)
class _Work:
    """What one rank does at one step: its micro-batches, their tokens (without padding), FLOPs, and hash of rows.

    `counts` are those of the whole global batch, `cursor` leads to the window that it begins in.
    """

    batches: list[GroupedBatch]
    counts: dict[str, int]
    tokens: int
    flops: int
    hash: int
    cursor: Cursor


def _read(run: Run, step: int, rank: int, world: int) -> _Work:
    micro_rows = run.config.micro_rows
    cursor = run.loader.order.cursor(step)
    try:
        view = run.loader.view(step, rank, world, micro_rows)
    except LostBatches as error:
        error.row = max(error.row, cursor.row)
        raise
    rows = [view.rows[at : at + micro_rows] for at in range(0, len(view.rows), micro_rows)]
    hashes = [hash_of_rows(batch, own) for batch, own in zip(view.batches, rows, strict=True)]
    tokens = sum(int((batch.document_T > 0).sum()) for batch in view.batches)
    flops = sum(batch_flops(run.config.model, run.vocabulary.size, batch, run.towers.names) for batch in view.batches)
    return _Work(view.batches, view.counts, tokens, int(flops), wrapped(sum(hashes)), cursor)


def _learn(run: Run, work: _Work, rate: float) -> tuple[Tensor, Tensor]:
    """One optimizer step; (float64 [total, sums, counts] of this rank's losses, norm of the gradient), on the device."""
    names, dtype = run.losses, PRECISION[run.config.precision]
    tally = torch.zeros(1 + 2 * len(run.losses), dtype=torch.float64, device=run.device)
    for i, batch in enumerate(work.batches):
        with reducing(run.learner, i == len(work.batches) - 1):
            with torch.autocast(run.device.type, dtype, enabled=dtype is not torch.float32):
                found = run.learner(batch.to(run.device), work.counts)
            found.total.backward()
        terms = [found.total.detach(), *(each[name] for each in (found.sums, found.counts) for name in names)]
        tally += torch.stack([term.double() for term in terms])
    norm = gradient_norm(run.model, run.config.optimizer.clip)
    set_learning_rate(run.optimizer, rate)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return tally, norm


def _ahead(run: Run, rank: int, world: int, say: Callable[[str], None]) -> Iterator[_Work]:
    """The work of each step to come, read in a second thread while the one before it is done.

    What is damaged on one rank is left out on all; what else goes wrong on one stops all.
    """
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_read, run, run.step, rank, world)
        for step in range(run.step, run.config.steps):
            while (work := _agreed(run, coming, rank, world, say)) is None:
                coming = reader.submit(_read, run, step, rank, world)
            if step + 1 < run.config.steps:
                coming = reader.submit(_read, run, step + 1, rank, world)
            yield work


def _agreed(run: Run, coming: Future[_Work], rank: int, world: int, say: Callable[[str], None]) -> _Work | None:
    """The work, if no rank misses anything; None once all go on without what some of them miss."""
    failure = coming.exception()
    if not any_of(failure is not None, world):
        return coming.result()
    mine = [Damage(failure.row, each) for each in failure.lost] if isinstance(failure, LostBatches) else None
    if any_of(failure is not None and mine is None, world):
        assert failure is None or isinstance(failure, Exception)
        raise together_refused(None if mine else failure, world)
    found = sorted({each for told in gathered(mine or [], world) for each in told})
    run.check_damage(found)
    if rank == 0:
        damage.note(run.out, found)
    for each in found:
        say(f"{each.lost.why}; going on without its documents ({run.out / damage.LOST} has the list)")
    run.loader.order.leave_out(found)
    return None


def _check_finite(run: Run, loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(
            f"optimizer.lr: loss {loss} and gradient norm {norm} at step {run.step} are not finite: training diverged; "
            f"lower the rate or raise the warmup, and choose another --out"
        )


@contextmanager
def _cpu_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _signals(say: Callable[[str], None]) -> Iterator[list[int]]:
    """Gathers SIGINT and SIGTERM while open, so that a step is finished and saved; a second one acts at once.

    Outside the main thread Python can catch none, and the list stays empty.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def catch(number: int, frame: Any) -> None:
        caught.append(number)
        signal.signal(number, handlers[number])
        say("finishing this step, then saving; once more stops at once")

    for number in handlers:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
