"""Exported models: the same weights and hidden states, a card, and no need of what only training needs."""

import json
import subprocess
import sys

import pytest
import torch

from motet.core.errors import UserError
from motet.tokenizers.contract import TokenizerSpec
from motet.trainer.generate.generator import Sampling
from motet.trainer.generate.kv_cache import KVCache
from motet.trainer.run.train import train
from motet.trainer.use.evaluate import evaluate
from motet.trainer.use.exported import export, export_llama
from motet.trainer.use.trained import Trained
from motet.trainer.vocabulary import TEXT

SPEC = TokenizerSpec("bytes", "text", "discrete", (256,), 0, None, "text/plain", "t" * 32)


@pytest.fixture(scope="module")
def run(request, tmp_path_factory):
    train_config, dataset = request.getfixturevalue("train_config"), request.getfixturevalue("dataset")
    out = tmp_path_factory.mktemp("run")
    config = train_config(
        steps=3,
        data={"paths": [dataset]},
        objective={"kind": "transfusion", "diffusion": "flow", "noise_steps": 50},
        model={"experts": {"text": {"count": 2}}},
    )
    train(config, out)
    evaluate(Trained.open(out))
    return out


def test_it_comes_back_as_it_was(run, tmp_path):
    ours = Trained.open(run)
    found = Trained.open(export(Trained.open(run), tmp_path / "out"))
    assert found.towers == ours.towers and found.vocabulary == ours.vocabulary
    assert found.objective == ours.objective and found.model.config == ours.model.config
    theirs = dict(ours.model.named_parameters())
    assert theirs.keys() == dict(found.model.named_parameters()).keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in found.model.named_parameters())
    half = Trained.open(export(Trained.open(run), tmp_path / "half", "bfloat16"), torch.bfloat16)
    assert half.model.head.weight.dtype is torch.bfloat16
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "out" / "model.safetensors"
    ).stat().st_size


def test_the_card_tells_what_it_is(run, tmp_path):
    card = (export(Trained.open(run), tmp_path / "out") / "README.md").read_text()
    trained = Trained.open(run)
    total = sum(weight.numel() for weight in trained.model.parameters()) / 1e6
    assert f"{total:,.1f} M parameters" in card
    assert f"3 of 3 steps on {trained.of_run().state.tokens:,} tokens" in card
    for modality, spec in trained.vocabulary.tokenizers.items():
        assert f"| {modality} | {modality} | {spec.name} `{spec.hash[:12]}`" in card
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert f"{evaluation['modalities']['speech']['loss']:.3f}" in card


def test_it_opens_and_generates_without_what_only_training_needs(run, tmp_path):
    export(Trained.open(run), tmp_path / "out")
    code = (
        "import sys\n"
        "for name in ('ray', 'tensorboard', 'matplotlib', 'numba', 'rich', 'tqdm', 'huggingface_hub', 'pyarrow'):\n"
        "    sys.modules[name] = None\n"
        "from motet.trainer.use.trained import Trained\n"
        "from motet.trainer.generate.generator import Sampling\n"
        f"found = Trained.open({str(tmp_path / 'out')!r})\n"
        "tokens = found.generator().continue_([[]], 'text', limit=5, sampling=Sampling(temperature=0))\n"
        "print(*tokens[0].ids)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    found = Trained.open(tmp_path / "out")
    assert found.generator().continue_([[]], "text", limit=5, sampling=Sampling(temperature=0))[0].ids.tolist() == [
        int(id_) for id_ in told.split()
    ]


def test_what_does_not_fit_is_named(run, tmp_path):
    out = export(Trained.open(run), tmp_path / "out")
    with pytest.raises(UserError, match="is there already"):
        export(Trained.open(run), out)
    with pytest.raises(UserError, match="holds no checkpoint"):
        Trained.open(run / "checkpoints" / "step-999999")
    said = json.loads((out / "config.json").read_text())
    said["model"]["layers"] = 3
    (out / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"weights are not those of config\.json.*blocks\.2"):
        Trained.open(out)
    said["format"] = 1
    (out / "config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="format 1 is not motet's 2"):
        Trained.open(out)
    said["format"], said["model"]["layers"] = 2, 2
    (out / "config.json").write_text(json.dumps(said))
    whole = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match="no whole safetensors file"):
        Trained.open(out)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_text_model_opens_as_a_llama(qk_norm, train_config, write_dataset, documents, tmp_path):
    transformers = pytest.importorskip("transformers")
    texts = [d for d in documents if [m for m, _ in d.spans] == ["text"]]
    path = write_dataset(texts, modalities=("text",), specs={"text": SPEC})
    config = train_config(
        data={"paths": [path]}, model={"norm": "before", "qk_norm": qk_norm, "heads": 4, "kv_heads": 2}, steps=2
    )
    train(config, tmp_path / "run")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        export_llama(Trained.open(tmp_path / "run"), tmp_path / "out")
    ).eval()
    assert type(theirs).__name__ == ("Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM")
    ours = Trained.open(tmp_path / "run")
    ids = list(b"The state of the Union")
    bos, size = theirs.config.bos_token_id, ours.vocabulary.tokenizers[TEXT].codebooks[0]
    begin = ours.vocabulary.base[TEXT][0]
    hidden = KVCache(ours.model, 1, 40).extend(
        torch.tensor([[ours.vocabulary.bos, *(begin + i for i in ids)]]).numpy(),
        torch.zeros(1, len(ids) + 1).long().numpy(),
    )
    with torch.no_grad():
        expected = theirs(torch.tensor([[bos, *ids]])).logits[0]
        found = ours.model.logits(hidden[0])
    torch.testing.assert_close(found[:, begin : begin + size], expected[:, :size], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        found[:, ours.vocabulary.eos], expected[:, theirs.config.eos_token_id], rtol=1e-4, atol=1e-5
    )


def test_a_model_of_several_modalities_is_no_llama(run, tmp_path):
    with pytest.raises(UserError, match="cannot be a Llama: it knows image, speech"):
        export_llama(Trained.open(run), tmp_path / "out")
