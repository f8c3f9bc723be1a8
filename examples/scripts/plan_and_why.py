"""What a configuration will see before it is paid for, and which samples stand behind a step.

    python examples/scripts/plan_and_why.py OUT     (after train_and_resume.py OUT)

Some 5 seconds on one core. Writes OUT/why.html. The order of samples is a formula, so that nothing has to be logged: the
same question has the same answer before training and years after.
"""

import sys
from pathlib import Path

from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.tokenizers import dataset_tokenizers
from motet.pipeline.dataset.view import page, pick
from motet.trainer.config import load
from motet.trainer.run import metrics
from motet.trainer.use.plan import plan
from motet.trainer.use.why import why

out = Path(sys.argv[1])

config = load(out / "run/train.yaml", ["steps=200", "data.weights={emoji: 0.2, prompts: 0.2, speeches: 0.6}"])
seen = plan(config, steps=50)
print(
    f"{seen['parameters']:,} parameters in towers of {', '.join(seen['towers'])}, {seen['active']:,} for any one token"
)
print(f"{seen['run_tokens']:,} tokens in 200 steps, {seen['padding']:.1%} of the places stay empty")
for name, source in seen["sources"].items():
    warning = "  <- much too often" if source["epochs"] > 10 else ""
    print(f"  {name}: {source['share']:.0%} of what is seen, {source['epochs']:.1f} epochs{warning}")
median, worst = seen["imbalance"][2]
print(f"  of 2 ranks the one with more work has {median:.3f} of the mean, {worst:.3f} at worst")

highest = max(metrics.read(out / "run"), key=lambda row: row["grad_norm"])
print(f"step {highest['step']} of OUT/run had the largest gradient, {highest['grad_norm']:.2f}")
told = why(out / "run", highest["step"])
same = why(out / "undisturbed", highest["step"])["pieces"] == told["pieces"]
print(f"the run that was never stopped learned from the same pieces there: {same}")
for piece in told["pieces"][:4]:
    print(
        f"  row {piece['row']}: {piece['source']} {piece['sample']}, tokens {piece['begin']}-{piece['end']}, {piece['shard']}"
    )
print(f"  ... {len(told['pieces'])} pieces in all")

manifest = Manifest.load(out / "tokens")
samples = dict.fromkeys(piece["sample"] for piece in told["pieces"] if piece["source"] != "speeches")
documents = pick(manifest, list(samples)[:12])
(out / "why.html").write_text(page(manifest, documents, dataset_tokenizers(manifest)), "utf-8")
print(f"wrote {out / 'why.html'}: {len(documents)} of its documents, decoded back")
