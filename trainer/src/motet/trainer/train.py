"""The training loop: `train` is the whole of it, from token datasets to checkpoints.

    Corpus -> Plan -> Stream --micro-batches--> MoT -> losses --backward--> gradient --clip--> AdamW -> weights
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from motet.pipeline.shard import DamagedShard
from motet.tokenizers.configuration import UserError

from .batch import GroupedBatch
from .config import TrainConfig
from .evaluate import means
from .folder import claimed
from .metrics import MetricsLog, Row, hash_of_rows, wrapped
from .objective import losses
from .optimizer import gradient_norm, learning_rate, set_learning_rate
from .run import Run

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

    Returns a summary: `out`, `step` done of `steps`, `finished`, `resumed_from` (a step), `tokens`. UserError if
    configuration, data and folder do not fit; DamagedShard and DamagedCheckpoint name bytes that have changed.
    """
    out = Path(out)
    with ExitStack() as stack:
        with _together(world):
            if rank == 0:
                stack.enter_context(claimed(out, config))
            run = Run.open(config, out)
        start = run.step
        if start == config.steps:
            say(f"{out}: this run is finished, all {config.steps} steps: nothing to do")
        else:
            if start:
                say(f"{out}: going on after step {start} of {config.steps}")
            stack.enter_context(_cpu_threads(run.threads))
            signals = stack.enter_context(_signals(say))
            metrics = stack.enter_context(MetricsLog(out, start)) if rank == 0 else None
            _loop(run, rank, world, metrics, signals, on_step)
            if run.step < config.steps:
                say(f"stopped and saved after step {run.step} of {config.steps}; the same command goes on from there")
    return {
        "out": str(out),
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
) -> None:
    config, began = run.config, time.perf_counter()
    model = _in_parallel(run.model, world)
    for work in _ahead(lambda step: _read(run, step, rank, world), run.step, config.steps):
        rate = learning_rate(run.step, config.steps, config.optimizer)
        tally, norm = _learn(run, model, work, rate)

        loss, *tally_2K = _add_up(tally, world).tolist()
        host = torch.tensor([work.hash, work.tokens, len(signals)], device=run.device)
        batch, tokens, stop = _add_up(host, world).tolist()
        _check_finite(run, loss, norm.item())
        run.step, run.tokens = run.step + 1, run.tokens + tokens
        seconds = time.perf_counter() - began
        last = stop or run.step == config.steps
        if metrics:
            row: Row = {
                "step": run.step - 1,
                "loss": loss,
                "losses": means(run.losses, tally_2K),
                "lr": rate,
                "grad_norm": norm.item(),
                "tokens": run.tokens,
                "batch": f"{batch % (1 << 64):016x}",
                "seconds": round(seconds, 6),
                "tokens_per_second": round(tokens / seconds, 1),
                "mfu": run.mfu(seconds),
            }
            if config.evaluate_every and run.step % config.evaluate_every == 0:
                row["heldout"] = run.heldout()
            metrics.write(row)
            if last or run.step % config.checkpoint_every == 0:
                metrics.sync()
                run.save()
            if on_step:
                on_step(row)
        if last:
            return
        began = time.perf_counter()


@dataclass(frozen=True)
class _Work:
    """What one rank does at one step: its micro-batches, its tokens (without padding), the hash of its rows.

    `counts` are those of the whole global batch.
    """

    batches: list[GroupedBatch]
    counts: dict[str, int]
    tokens: int
    hash: int


def _read(run: Run, step: int, rank: int, world: int) -> _Work:
    micro_rows = run.config.micro_rows
    batches = run.stream.micro_batches(step, rank, world, micro_rows)
    first_rows = range(rank, run.config.rows, world * micro_rows)
    hashes = [hash_of_rows(batch, first, world) for batch, first in zip(batches, first_rows, strict=True)]
    tokens = sum(int((batch.document_T > 0).sum()) for batch in batches)
    return _Work(batches, run.stream.counts(step), tokens, wrapped(sum(hashes)))


def _learn(run: Run, model: nn.Module, work: _Work, rate: float) -> tuple[Tensor, Tensor]:
    """One optimizer step; (float64 [total, sums, counts] of this rank's losses, norm of the gradient), on the device."""
    names, tally = run.losses, torch.zeros(1 + 2 * len(run.losses), dtype=torch.float64, device=run.device)
    for i, batch in enumerate(work.batches):
        with _reducing(model, i == len(work.batches) - 1):
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.config.precision == "bfloat16"):
                found = losses(model, batch.to(run.device), run.config.objective, work.counts)
            found.total.backward()
        terms = [found.total.detach(), *(each[name] for each in (found.sums, found.counts) for name in names)]
        tally += torch.stack([term.double() for term in terms])
    norm = gradient_norm(run.model, run.config.optimizer.clip)
    set_learning_rate(run.optimizer, rate)
    run.optimizer.step()
    run.optimizer.zero_grad()
    return tally, norm


def _ahead(read: Callable[[int], _Work], start: int, stop: int) -> Iterator[_Work]:
    """read(start), ..., read(stop - 1): each read in a second thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, start)
        for step in range(start, stop):
            work = coming.result()
            if step + 1 < stop:
                coming = reader.submit(read, step + 1)
            yield work


def _check_finite(run: Run, loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise UserError(
            f"optimizer.lr: loss {loss} and gradient norm {norm} at step {run.step} are not finite: training diverged; "
            f"lower the rate or raise the warmup, and choose another --out"
        )


# Several processes.


@contextmanager
def _together(world: int) -> Iterator[None]:
    """What is refused on one rank is refused on all, so that none waits for another that is gone."""
    refusal: Exception | None = None
    try:
        yield
    except (UserError, DamagedShard) as error:
        refusal = error
    refusals = int(_add_up(torch.tensor(int(refusal is not None)), world))
    if refusal:
        raise refusal
    if refusals:
        raise UserError("another worker refused to train; its message says why")


def _in_parallel(model: nn.Module, world: int) -> nn.Module:
    """`model`, its gradients added up over all ranks in the backward pass."""
    if world == 1:
        return model
    parallel = DistributedDataParallel(model)
    parallel.register_comm_hook(None, _sum_gradients)
    return parallel


def _sum_gradients(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _reducing(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients at the last micro-batch of a step only."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def _add_up(values: Tensor, world: int) -> Tensor:
    """The sum over ranks; int64 wraps round."""
    if world > 1:
        dist.all_reduce(values)
    return values


# This process.


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
