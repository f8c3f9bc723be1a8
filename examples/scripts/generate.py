"""A trained model continues prompts: a picture after a caption, a caption after a picture, speech after text.

    python examples/scripts/generate.py OUT     (after train_and_resume.py OUT; or: generate.py OUT RUN, with a run of your own)

Some 10 seconds on one core. Writes OUT/exported, a folder that holds all that the model needs, and OUT/generated. A model of 24
steps draws noise: give the run of `motet demo` (demo/chameleon) to see more.
"""

import shutil
import sys
from pathlib import Path

from motet.tokenizers.contract import Tokenizer, Tokens
from motet.trainer.generate.generator import Sampling, Wanted
from motet.trainer.use.exported import export
from motet.trainer.use.trained import Trained

EMOJI = Path(__file__).resolve().parents[1] / "corpus/images/emoji"
out = Path(sys.argv[1])
run = Path(sys.argv[2]) if len(sys.argv) > 2 else out / "run"
(out / "generated").mkdir(parents=True, exist_ok=True)


def encoded(tokenizers: dict[str, Tokenizer], modality: str, data: bytes) -> tuple[str, Tokens]:
    """A file's bytes as one span of a prompt."""
    tokenizer = tokenizers[modality]
    return modality, tokenizer.encode([tokenizer.load(data)])[0]


def write(tokenizers: dict[str, Tokenizer], modality: str, tokens: Tokens, name: str) -> None:
    """Tokens as a file that a person can open."""
    tokenizer = tokenizers[modality]
    (out / "generated" / name).write_bytes(tokenizer.dump(tokenizer.decode([tokens])[0]))
    print(f"{out / 'generated' / name}: {modality}, shape {tokens.shape}")


trained = Trained.open(run)  # its newest checkpoint
tokenizers, generator = trained.tokenizers(), trained.generator()
sampling = Sampling(temperature=0.9, top_p=0.95, seed=1)
captions = [[encoded(tokenizers, "text", caption)] for caption in (b"red apple", b"green heart")]
pictures = generator.continue_(
    captions, "image", shape=(8, 8), sampling=sampling
)  # the grid of the tokenizer's pictures
for number, tokens in enumerate(pictures):
    write(tokenizers, "image", tokens, f"picture-{number}.png")

prompt = [encoded(tokenizers, "image", (EMOJI / "1f436.webp").read_bytes())]
(caption,) = generator.continue_([prompt], "text", limit=12, sampling=sampling)
write(tokenizers, "text", caption, "caption.txt")

frames = int(2 * tokenizers["speech"].spec.rate)  # at most two seconds
(speech,) = generator.continue_([[encoded(tokenizers, "text", b"Goodbye.")]], "speech", limit=frames, sampling=sampling)
write(tokenizers, "speech", speech, "speech.wav")

wanted = [Wanted("text", limit=8), Wanted("image", shape=(8, 8)), Wanted("speech", limit=20)]
for modality, tokens in generator.interleave([[]], wanted, sampling)[0]:  # after nothing at all: one document of three
    print(f"interleaved: {modality}, {len(tokens)} tokens")

shutil.rmtree(out / "exported", ignore_errors=True)  # of an earlier call: `export` wants a new folder
export(trained, out / "exported")
exported = Trained.open(out / "exported")  # needs neither the run nor its data
again = exported.generator().continue_(captions, "image", shape=(8, 8), sampling=sampling)
same = all((one.ids == other.ids).all() for one, other in zip(pictures, again, strict=True))
print(f"{out / 'exported'}: opened, draws the same pictures from the same seed: {same}")
