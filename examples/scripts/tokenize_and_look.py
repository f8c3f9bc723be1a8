"""Pictures, speech and text to a token dataset, in Python: fit tokenizers, tokenize, count, decode a document back.

    python examples/scripts/tokenize_and_look.py OUT

About 10 seconds on one core. Writes OUT/corpus (a slice of the bundled corpus), OUT/tokenizers, OUT/tokens (the dataset that
the other scripts read) and OUT/look (documents decoded back: text, PNG, WAV).
"""

import json
import shutil
import sys
from pathlib import Path

from rich.console import Console

from motet.pipeline.dataset.manifest import Manifest
from motet.pipeline.dataset.statistics import statistics, table
from motet.pipeline.dataset.tokenizers import dataset_tokenizers
from motet.pipeline.dataset.view import spread
from motet.pipeline.job.config import TokenizeConfig
from motet.pipeline.job.job import tokenize_corpus
from motet.tokenizers.speech.melrvq import MelRVQ
from motet.tokenizers.text.bpe import BPE

EXAMPLES = Path(__file__).resolve().parents[1]
SUFFIX = {"text": "txt", "image": "png", "speech": "wav"}


def first(folder: Path, count: int, to: Path) -> list[Path]:
    """Copy the first media of a folder, and the lines of its metadata.jsonl that caption them."""
    to.mkdir(parents=True, exist_ok=True)
    lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()[:count]
    (to / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return [Path(shutil.copy(folder / json.loads(line)["file_name"], to)) for line in lines]


def main(out: Path) -> None:
    """From media to tokens and back."""
    first(EXAMPLES / "corpus/images/emoji", 96, out / "corpus/emoji")
    sounds = first(EXAMPLES / "corpus/speech/prompts", 64, out / "corpus/prompts")
    lines = (EXAMPLES / "corpus/text/speeches.jsonl").read_text("utf-8").splitlines()
    speeches = [json.loads(line)["text"][:6_000] for line in lines]
    (out / "corpus/speeches.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in speeches), "utf-8")

    print("bpe", BPE.fit([each.encode() for each in speeches], out / "tokenizers/bpe", {"vocabulary": 1024}))
    print("melrvq", MelRVQ.fit([each.read_bytes() for each in sounds], out / "tokenizers/melrvq", {"size": 64}))

    config = TokenizeConfig(
        corpus=[
            {"name": "emoji", "format": "folder", "path": "corpus/emoji", "modality": "image"},
            {"name": "prompts", "format": "folder", "path": "corpus/prompts", "modality": "speech"},
            {"name": "speeches", "format": "text", "path": "corpus/speeches.jsonl"},
        ],
        tokenizers={
            "text": {"use": "bpe", "path": "tokenizers/bpe"},
            "image": {"use": "vqgan", "path": str(EXAMPLES / "demo/weights/vqgan")},
            "speech": {"use": "melrvq", "path": "tokenizers/melrvq"},
        },
    )
    done = tokenize_corpus(config, base=out.resolve(), out=out / "tokens")
    print(f"{done.samples} samples, {done.rejected} rejected, {done.done} of {done.partitions} partitions done now")

    manifest = Manifest.load(out / "tokens")
    Console().print(table(statistics(manifest, sequences=(256,))))

    tokenizers = dataset_tokenizers(manifest)
    (out / "look").mkdir(exist_ok=True)
    for document in spread(manifest, len(manifest.sources)):  # one of each source
        for number, (modality, tokens) in enumerate(document.spans):
            tokenizer = tokenizers[modality]
            file = out / "look" / f"{document.source}-{number}.{SUFFIX[modality]}"
            file.write_bytes(tokenizer.dump(tokenizer.decode([tokens])[0]))
            print(f"{file}: {modality}, shape {tokens.shape}, ids {tokens.ids[:6].tolist()} ...")


if __name__ == "__main__":  # workers are processes of their own, which import this file
    main(Path(sys.argv[1]))
