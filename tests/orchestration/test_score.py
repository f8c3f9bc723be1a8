"""Held-out pairs, scores and sheets, on a tiny model of real captioned pictures; the distance against plain formulas."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from whole import everything

from motet.core.errors import UserError
from motet.orchestration import cli
from motet.orchestration.cli import app
from motet.orchestration.workflow import Workflow
from motet.tokenizers.contract import Tokens
from motet.tokenizers.registry import find
from motet.trainer.config import load
from motet.trainer.data.corpus import Corpus
from motet.trainer.generate.generator import Sampling
from motet.trainer.use.media import judges
from motet.trainer.use.media.pairs import follow, heldout_pairs
from motet.trainer.use.media.samples import Limits, Prompt, Sampler
from motet.trainer.use.media.score import lines
from motet.trainer.use.media.sheet import label, write_sheet
from motet.trainer.use.trained import Trained

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "examples/corpus/images/emoji"
PICTURES = 80

ROOT_COMMAND = typer.main.get_command(app)


def run_verb(monkeypatch: pytest.MonkeyPatch, *args: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["motet", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def captions() -> list[dict]:
    lines = (EMOJI / "metadata.jsonl").read_text("utf-8").splitlines()[:PICTURES]
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, captions: list[dict]) -> Path:
    """A model of three steps; a third of its 80 captioned pictures is held out."""
    root = tmp_path_factory.mktemp("score")
    find("bpe").fit([row["text"].encode() for row in captions], root / "bpe", {"vocabulary": 300})
    rows = [{"parts": [{"text": row["text"]}, {"image": row["file_name"]}]} for row in captions]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {
        "corpus": [{"name": "emoji", "format": "interleaved", "path": "pairs.jsonl", "root": str(EMOJI)}],
        "tokenizers": {
            "text": {"use": "bpe", "path": "bpe"},
            "image": {"use": "vqgan", "path": str(ROOT / "examples/demo/weights/vqgan")},
        },
    }
    (root / "corpus.yaml").write_text(yaml.safe_dump(corpus))
    train = {
        "data": {"paths": ["codes"], "sequence": 128, "holdout": 0.3},
        "model": {"dim": 32, "layers": 1, "heads": 2},
        **{"steps": 3, "rows": 2, "micro_rows": 2, "threads": 1},
    }
    (root / "train.yaml").write_text(yaml.safe_dump(train))
    with pytest.MonkeyPatch.context() as patch:
        assert run_verb(patch, "tokenize", root / "corpus.yaml", "--out", root / "codes", "--workers", "1") == 0
        assert run_verb(patch, "train", root / "train.yaml", "--out", root / "run") == 0
    return root / "run"


@pytest.fixture(scope="module")
def sampler(run: Path) -> Sampler:
    return Sampler(Trained.open(run))


def test_pairs_are_real_ones_that_the_model_never_saw(sampler: Sampler, captions: list[dict]) -> None:
    text, image = sampler.tokenizers["text"], sampler.tokenizers["image"]
    pairs = heldout_pairs(sampler.trained, "image", 1000)
    assert 10 < len(pairs) < 40
    file_of = {row["text"]: row["file_name"] for row in captions}
    for pair in pairs:
        (caption,) = text.decode([pair.text])
        (codes,) = image.encode([image.load((EMOJI / file_of[caption]).read_bytes())])
        assert pair.media.shape == codes.shape == (8, 8)
        assert pair.media.ids.tolist() == codes.ids.tolist()
    assert len({pair.text.ids.tobytes() for pair in pairs}) == len(pairs)
    for ours, first in zip(heldout_pairs(sampler.trained, "image", 5), pairs, strict=False):
        assert ours.text.ids.tolist() == first.text.ids.tolist()


def test_what_follows_has_the_form_of_the_real(sampler: Sampler) -> None:
    pairs = heldout_pairs(sampler.trained, "image", 20)
    pictures = list(follow(sampler.generator, pairs, "image", Sampling()))
    assert len(pairs) > 16  # more than one batch
    assert [p.shape for p in pictures] == [(8, 8)] * len(pairs)
    assert pictures[0].ids.tolist() != pictures[16].ids.tolist()
    texts = list(follow(sampler.generator, pairs[:3], "text", Sampling()))
    assert all(len(each.shape) == 1 and each.ids.max(initial=0) < 300 for each in texts)


def test_no_pairs_is_an_error_that_says_so(sampler: Sampler) -> None:
    with pytest.raises(UserError, match="speech: the model knows no such modality beside text; it knows image"):
        heldout_pairs(sampler.trained, "speech", 4)


def test_a_sheet_is_a_picture_that_equal_seeds_repeat(run: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("one.png", "two.png"):
        assert run_verb(monkeypatch, "sheet", run, "--out", tmp_path / name, "--count", "5") == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    sheet = Image.open(tmp_path / "one.png")
    assert sheet.format == "PNG" and sheet.width > 900 and sheet.height > 500
    assert len(np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_the_captions_example_can_be_read() -> None:
    captions = ROOT / "examples/captions"
    steps = [step.run.split()[0] for step in Workflow.load(captions / "workflow.yaml", ROOT_COMMAND).ordered()]
    assert steps.count("sheet") == 2
    kinds = [load(captions / f"{name}.yaml").objective.kind for name in ("chameleon", "transfusion")]
    assert kinds == ["chameleon", "transfusion"]


def test_the_label_tells_size_steps_data_and_draw(sampler: Sampler) -> None:
    told = label(sampler.trained, Sampling(seed=7, temperature=0.5), 5)
    for word in (
        "chameleon",
        "2 towers",
        "3 steps",
        "80 documents (emoji)",
        "first 5",
        "30 %",
        "seed 7",
        "temperature 0.5",
    ):
        assert word in told


def test_bits_per_byte_need_the_text_tokenizer(run: Path, monkeypatch, capsys) -> None:
    assert run_verb(monkeypatch, "evaluate", run) == 0
    assert "bits per byte, over" in capsys.readouterr().out
    text = json.loads((run / "evaluation.json").read_text())["modalities"]["text"]
    assert text["bits_per_byte"] > text["bits"] / 20 and 10 < text["bytes"] < 2000
    bpe = run.parent / "bpe"
    bpe.rename(run.parent / "elsewhere")
    try:
        assert run_verb(monkeypatch, "evaluate", run) == 0
    finally:
        (run.parent / "elsewhere").rename(bpe)
    assert "No bits per byte: bpe: path: " in capsys.readouterr().out
    assert "bits_per_byte" not in json.loads((run / "evaluation.json").read_text())["modalities"]["text"]


@pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="needs the extra scores")
def test_captions_are_scored_beside_chance(run: Path, monkeypatch) -> None:
    assert run_verb(monkeypatch, "score", run, "--to", "text", "--count", "12") == 0
    (score,) = json.loads((run / "scores.json").read_text())["scores"]
    assert score["count"] == 12 and 0 <= score["value"] < 40 and 0 < score["reference"] < 40
    assert judges.chrf(["a red apple"], ["a red apple"]) == pytest.approx(100)


@pytest.mark.parametrize("to", ["text", "image"])
def test_a_missing_package_is_named_with_its_cure(run: Path, to: str, monkeypatch, capsys) -> None:
    for package in ("sacrebleu", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, package, None)
    assert run_verb(monkeypatch, "score", run, "--to", to, "--count", "4") == 2
    assert "pip install 'motet-orchestration[scores]'" in capsys.readouterr().err


def test_what_nothing_judges_is_an_error(run: Path, monkeypatch, capsys) -> None:
    assert run_verb(monkeypatch, "score", run, "--to", "smell") == 2
    assert "--to smell: nothing judges that; choose from image, text, speech" in capsys.readouterr().err


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(2, 9), st.integers(1, 6))
def test_frechet_distance_is_that_of_the_formula(seed: int, n: int, m: int, dim: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(n, dim)), random.normal(1, 2, size=(m, dim))
    cov_a, cov_b = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (a, b))
    root = np.sqrt(np.clip(np.linalg.eigvals(cov_a @ cov_b).real, 0, None)).sum()
    plain = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert judges.frechet(a, b) == pytest.approx(max(plain, 0), abs=1e-5)
    assert judges.frechet(a, b) == pytest.approx(judges.frechet(b, a), abs=1e-9)
    assert judges.frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert judges.frechet(a, a + 3.0) == pytest.approx(9 * dim, rel=1e-9)


def test_kernel_distance_is_zero_on_average_for_one_distribution_and_grows_with_a_shift() -> None:
    random = np.random.default_rng(1)
    same = [judges.kernel(random.normal(size=(9, 4)), random.normal(size=(7, 4))) for _ in range(2000)]
    assert abs(np.mean(same)) < 4 * np.std(same) / len(same) ** 0.5
    a, b = random.normal(size=(6, 3)), random.normal(1, 1, size=(5, 3))
    k = lambda x, y: (float(x @ y) / 3 + 1) ** 3  # noqa: E731
    within = [np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    assert judges.kernel(a, b) == pytest.approx(sum(within) - 2 * np.mean([k(x, y) for x in a for y in b]))
    assert judges.kernel(a, a + 5) > 100 * abs(np.mean(same))


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="needs the extra scores")
def test_features_tell_pictures_apart(captions: list[dict]) -> None:
    pictures = [Image.open(io.BytesIO((EMOJI / row["file_name"]).read_bytes())).convert("RGB") for row in captions[:6]]
    features = judges.picture_features([*pictures, pictures[0]], batch=4)
    assert features.shape == (7, 1280)
    assert np.abs(features[0] - features[6]).max() < 1e-4 < 0.1 < np.abs(features[0] - features[5]).max()


@pytest.mark.skipif(importlib.util.find_spec("moonshine_voice") is None, reason="needs the extra scores")
def test_real_speech_is_heard() -> None:
    import soundfile

    from motet.tokenizers.contract import Waveform

    prompts = ROOT / "examples/corpus/speech/prompts"
    rows = [json.loads(line) for line in (prompts / "metadata.jsonl").read_text("utf-8").splitlines()[2:4]]
    waves = [Waveform(*soundfile.read(prompts / row["file_name"], dtype="float32")) for row in rows]
    true = [row["text"] for row in rows]
    assert judges.word_error_rate(waves, true) < 0.4
    assert judges.word_error_rate(waves, true[::-1]) > 0.4
    silence = Waveform(np.zeros(0, np.float32), 16000)
    assert judges.word_error_rate([silence], ["two words"]) == 1


def test_the_first_pairs_are_those_of_the_least_content_hash(sampler: Sampler) -> None:
    data = sampler.trained.of_run().config.data
    documents = everything(Corpus.open(data.paths, "heldout", data.holdout))
    text = documents.modalities.index("text")
    least = []
    for d in np.argsort(documents.sample_D2[:, 0])[:7].tolist():
        spans = range(documents.span_D[d], documents.span_D[d] + documents.spans_D[d])
        [span] = [s for s in spans if documents.modality_S[s] == text]
        at = documents.at_S[span]
        least.append(documents.tokens_T[at : at + documents.length_S[span]].tolist())
    assert [pair.text.ids.tolist() for pair in heldout_pairs(sampler.trained, "image", 7)] == least


def test_every_prompt_has_the_results_that_it_asked_for(sampler: Sampler, captions: list[dict]) -> None:
    prompts = []
    for row in captions[:4]:
        prompts.append(Prompt((("text", row["text"].encode()),), ("image",)))
        prompts.append(Prompt((("image", (EMOJI / row["file_name"]).read_bytes()),), ("text",)))
    drawn = sampler.draw(prompts, Sampling(), Limits(words=4))
    assert [sample.prompt for sample in drawn.samples] == prompts
    assert [tuple(m for m, _ in sample.results) for sample in drawn.samples] == [prompt.to for prompt in prompts]
    assert len({sample.results for sample in drawn.samples[::2]}) == 4


def test_on_a_sheet_the_models_picture_stands_left_of_the_real_one(sampler: Sampler, tmp_path: Path) -> None:
    write_sheet(sampler.trained, tmp_path / "sheet.png", 1, Sampling())
    [pair] = heldout_pairs(sampler.trained, "image", 1)
    image = sampler.tokenizers["image"]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(float)

    def away(tokens: Tokens, left: int) -> float:
        """How far the column of the sheet that begins at `left` is from a picture, where it is nearest."""
        [media] = image.decode([tokens])
        picture = Image.open(io.BytesIO(image.dump(media))).convert("RGB").resize((112, 112), Image.Resampling.LANCZOS)
        tops = range(len(sheet) // 2)  # below stand captions of the real one
        return min(np.abs(sheet[top : top + 112, left : left + 112] - np.asarray(picture)).mean() for top in tops)

    [made] = follow(sampler.generator, [pair], "image", Sampling())
    left, right = 6, 6 + 112 + 6
    assert max(away(made, left), away(pair.media, right)) < 8 < min(away(made, right), away(pair.media, left))


def test_lines_say_which_way_a_score_is_better_and_what_is_real() -> None:
    captions = {"task": "a caption", "measure": "chrF", "less": False, "count": 1200, "value": 12.5}
    errors = {"task": "speech", "measure": "word errors", "less": True, "count": 8, "value": 0.75}
    told = lines({"scores": [{**each, "reference": 0.25, "against": "real ones"} for each in (captions, errors)]})
    assert told == [
        "a caption: chrF (more is better), 1,200 documents: 12.5; real ones: 0.25",
        "speech: word errors (less is better), 8 documents: 0.75; real ones: 0.25",
    ]
