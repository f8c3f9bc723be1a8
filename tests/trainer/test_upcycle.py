"""Starting from a dense checkpoint: the same logits, tokens and losses as transformers, and nothing taken on trust."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import ranks
from safetensors.torch import load_file, save_file

from motet.core.errors import UserError
from motet.trainer.config import ModelConfig
from motet.trainer.data.corpus import Corpus
from motet.trainer.generate.kv_cache import KVCache
from motet.trainer.model.llama import Dense
from motet.trainer.model.mot import MoT
from motet.trainer.run import metrics
from motet.trainer.run.train import train
from motet.trainer.vocabulary import TEXT, Vocabulary

transformers = pytest.importorskip("transformers")

IDS = 300  # more than the 256 bytes that our data's text has
SHAPE = dict(hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
ARCHITECTURES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"rms_norm_eps": 1e-5}),
    "tied llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama in shards": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {"rms_norm_eps": 1e-5}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": None}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 8, "tie_word_embeddings": True}),
}


def dense(path, name, **changes):
    """A random model of a kind, written by transformers, with gains that are not all one."""
    config_class, model_class, more = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = config_class(vocab_size=IDS, bos_token_id=290, eos_token_id=291, **SHAPE | more | changes)
    model = model_class(config).eval()
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if "norm" in weight_name:
                weight += 0.2 * torch.randn_like(weight)
            else:
                weight *= 5  # so that choices are clear
    model.save_pretrained(path, max_shard_size="20KB" if "shards" in name else "5GB")
    return model


@pytest.fixture(scope="module")
def vocabulary(dataset):
    return Vocabulary.of(Corpus.open([dataset]).tokenizers)


def filled(path, vocabulary, towers):
    checkpoint = Dense.open(path)
    model = MoT(ModelConfig(**checkpoint.settings), towers, vocabulary.size, vocabulary.latent_dim)
    checkpoint.copy_into(model, vocabulary)
    return model.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("towers", [1, 3])
def test_logits_and_greedy_tokens_are_those_of_transformers(name, towers, tmp_path, vocabulary):
    theirs = dense(tmp_path, name)
    if "shards" in name:
        assert len(list(tmp_path.glob("*.safetensors"))) > 3
    ours = filled(tmp_path, vocabulary, ["text", "image", "speech"][:towers])
    begin = vocabulary.base[TEXT][0]
    prompt = np.random.default_rng(0).integers(0, 256, 20)
    tower = np.arange(20)[None] % towers  # all towers are the same model, whoever takes a position
    context = KVCache(ours, 1, 60)
    hidden = context.extend(begin + prompt[None], tower)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(prompt)[None]).logits[0]
        torch.testing.assert_close(ours.logits(hidden[0], begin, begin + 256), expected[:, :256], rtol=1e-4, atol=1e-4)
    allowed = {"bad_words_ids": [[i] for i in range(256, IDS)]}
    chosen = theirs.generate(torch.from_numpy(prompt)[None], max_new_tokens=40, do_sample=False, **allowed)[0, 20:]
    tokens = [int(ours.logits(hidden[:, -1], begin, begin + 256).argmax())]
    while len(tokens) < 40:
        hidden = context.extend(np.array([[begin + tokens[-1]]]), np.array([[len(tokens) % towers]]))
        tokens.append(int(ours.logits(hidden[:, -1], begin, begin + 256).argmax()))
    assert tokens == chosen.tolist() and len(set(tokens)) > 2  # tied embeddings like to repeat


def test_new_ids_hardly_change_what_text_costs(tmp_path, vocabulary):
    """By at most log(1 + new / known), as the mean of rows promises; markers have the checkpoint's own rows."""
    theirs = dense(tmp_path, "llama")
    ours = filled(tmp_path, vocabulary, ["text"])
    begin = vocabulary.base[TEXT][0]
    table = theirs.model.embed_tokens.weight
    assert torch.equal(ours.embedding.weight[vocabulary.bos], table[290])
    assert torch.equal(ours.head.weight[vocabulary.eos], theirs.lm_head.weight[291])
    hidden = torch.randn(50, 32) @ torch.randn(32, 32)
    with torch.no_grad():
        all_ids = ours.logits(hidden)
        text = all_ids[:, begin : begin + 256]
        new = torch.ones(vocabulary.size, dtype=torch.bool)
        new[[vocabulary.bos, vocabulary.eos]] = False
        new[begin : begin + 256] = False
        with_new = torch.cat((text, all_ids[:, new]), 1).logsumexp(1)
        more = with_new - text.logsumexp(1)
    assert float(more.min()) > 0 and float(more.max()) <= np.log(1 + int(new.sum()) / 256) + 1e-5


def start_config(train_config, path, dataset, **changes):
    model = Dense.open(path).settings
    return train_config(
        start=str(path), data={"paths": [dataset]}, objective={"kind": "transfusion"}, **changes
    ).model_copy(update={"model": ModelConfig(**model)})


def test_a_run_starts_at_the_dense_models_loss_and_goes_on_from_its_own(train_config, dataset, tmp_path, caplog):
    theirs = dense(tmp_path / "dense", "llama")
    config = start_config(train_config, tmp_path / "dense", dataset, steps=8, optimizer={"lr": 1e-4})
    said = []
    with caplog.at_level(logging.INFO):
        train(config, tmp_path / "run", say=said.append)
    told = next(line for line in said if "every tower is a copy; text loss before training" in line)
    first = next(iter(metrics.read(tmp_path / "run")))["losses"]["text"]
    assert first == pytest.approx(
        float(told.split("training ")[1].split(",")[0]), rel=0.3
    )  # of other rows of the batch
    assert "rows of embedding and head are new" in caplog.text

    shutil.rmtree(tmp_path / "dense")  # a run that has a checkpoint needs it no more
    losses = [row["loss"] for row in metrics.read(tmp_path / "run")]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000008")
    said.clear()
    train(config, tmp_path / "run", say=said.append)
    assert any("going on after step 4" in line for line in said)
    assert [row["loss"] for row in metrics.read(tmp_path / "run")] == losses
    assert theirs.config.vocab_size == IDS


def test_ranks_that_share_the_weights_start_there_too(train_config, dataset, tmp_path):
    dense(tmp_path / "dense", "llama")
    config = start_config(train_config, tmp_path / "dense", dataset, steps=3, micro_rows=1)
    train(config, tmp_path / "one")
    found = ranks([config.model_copy(update={"sharding": "shard"})] * 2, tmp_path, tmp_path / "two")
    assert [code for code, _ in found] == [0, 0], found
    assert "every tower is a copy; text loss before training" in found[0][1]
    for a, b in zip(metrics.read(tmp_path / "one"), metrics.read(tmp_path / "two"), strict=True):
        assert a["batch"] == b["batch"] and a["loss"] == pytest.approx(b["loss"], rel=1e-6)


def test_a_configuration_of_another_shape_is_told_what_to_write(train_config, dataset, tmp_path):
    dense(tmp_path / "dense", "llama")
    config = train_config(start=str(tmp_path / "dense"), data={"paths": [dataset]}, objective={"kind": "transfusion"})
    with pytest.raises(
        UserError, match=r"model: to start from .* it needs heads: 4 \(not 2\).*norm: before \(not after\)"
    ):
        train(config, tmp_path / "run")
    model = ModelConfig(**Dense.open(tmp_path / "dense").settings, experts={"text": {"count": 2}})
    config = config.model_copy(update={"model": model})
    with pytest.raises(UserError, match=r"model\.experts"):
        train(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "gpt2"}, "model_type: gpt2 is not of Llama's kind"),
        ({"attention_bias": True}, "attention_bias: True is not in motet's model"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type: llama3"),
        ({"head_dim": 16}, "4 heads of 16 are not hidden_size 32"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
        ({"intermediate_size": 96}, "up_proj|gate_proj|down_proj"),
        ({"vocab_size": 200}, r"is \[300, 32\], config.json makes it \[200, 32\]"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\.[a-z_.]+ is missing"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.[a-z_.]+: motet's model has no such weight"),
    ],
)
def test_what_is_not_this_kind_of_model_is_refused_by_name(change, told, tmp_path, vocabulary):
    dense(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=told):
        filled(tmp_path, vocabulary, ["text"])


def test_damaged_and_missing_files_are_named(tmp_path, vocabulary):
    dense(tmp_path, "llama in shards")
    shard = sorted(tmp_path.glob("*.safetensors"))[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=shard.name):
        filled(tmp_path, vocabulary, ["text"])
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: is missing"):
        filled(tmp_path, vocabulary, ["text"])
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index\.json: cannot be read"):
        Dense.open(tmp_path)
    with pytest.raises(UserError, match="holds no Hugging Face checkpoint"):
        Dense.open(tmp_path / "nowhere")


def test_a_tensor_too_much_or_too_few_text_ids_are_refused(tmp_path, vocabulary):
    dense(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}, file)
    with pytest.raises(UserError, match=r"q_proj\.bias: motet's model has no such weight"):
        filled(tmp_path, vocabulary, ["text"])
    spec = replace(vocabulary.tokenizers["text"], codebooks=(IDS + 1,))
    save_file(weights, file)
    with pytest.raises(UserError, match="knows 300 ids, but the data's text has 301"):
        filled(tmp_path, Vocabulary.of({**vocabulary.tokenizers, "text": spec}), ["text"])
