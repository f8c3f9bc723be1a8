"""Train a tiny Mixture-of-Transformers, stop it in the middle, go on: the same losses and weights as if nothing had happened.

    python examples/scripts/train_and_resume.py OUT     (after tokenize_and_look.py OUT)

Some 10 seconds on one core. Writes OUT/run, which is stopped by a signal and goes on, and OUT/undisturbed, which is not.
"""

import signal
import sys
from pathlib import Path

from motet.trainer.config import TrainConfig
from motet.trainer.run import metrics
from motet.trainer.run.train import train

out = Path(sys.argv[1])
config = TrainConfig(
    data={
        "paths": [str((out / "tokens").resolve())],
        "sequence": 256,
        "weights": {"emoji": 0.5, "prompts": 0.3, "speeches": 0.2},
        "caption_first": 0.7,  # generation; else captioning
        "long": "split",
    },
    model={"dim": 64, "layers": 2, "heads": 2},  # towers of text, image and speech, one attention over all of them
    objective={"kind": "chameleon"},  # the next token of every modality
    optimizer={"lr": 3e-3, "warmup": 4},
    steps=24,
    rows=8,
    micro_rows=4,
    checkpoint_every=12,
    threads=1,  # the last bits depend on it
)


def interrupt(row: dict) -> None:
    """Ctrl-C after step 16: the next step is finished and saved. A run that is killed goes on from its last checkpoint."""
    if row["step"] == 16:
        signal.raise_signal(signal.SIGINT)


told = train(config, out / "run", on_step=interrupt)
print(f"stopped: {told['step']} of {told['steps']} steps, finished: {told['finished']}")
told = train(config, out / "run")
print(f"resumed from step {told['resumed_from']}, finished: {told['finished']}, {told['tokens']:,} tokens")
train(config, out / "undisturbed")

one, other = (list(metrics.read(out / name)) for name in ("run", "undisturbed"))
for row in one[::8] + one[-1:]:
    losses = ", ".join(f"{modality} {loss:.3f}" for modality, loss in row["losses"].items())
    print(f"step {row['step']:2}: loss {row['loss']:.3f} ({losses}), global batch {row['batch']}")
same = [
    all(a[key] == b[key] for key in ("loss", "losses", "grad_norm", "batch")) for a, b in zip(one, other, strict=True)
]
print(f"{sum(same)} of {len(same)} steps have the same batch, losses and gradient norm to the last bit")
weights = [
    (out / name / "checkpoints/step-000024/model/00000.safetensors").read_bytes() for name in ("run", "undisturbed")
]
print(f"the files of weights are equal: {weights[0] == weights[1]}")
