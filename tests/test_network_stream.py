"""The direct path, against products of the model's own matrices, on models of the transformers library and others."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from specialize_nb.network.stream import direct_scores
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import trace
from specialize_nb.training.models import transformer

IDS = torch.randint(3, 30, (4, 6), generator=torch.Generator().manual_seed(0))
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 12}
WORDS = {"vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double().eval().requires_grad_(False)
        for name, value in model.named_parameters():
            value.copy_(torch.randn(value.shape, dtype=torch.float64) * 0.4 + ("norm" in name or "ln_" in name))
    return model


def gpt2():
    hf = pytest.importorskip("transformers")
    return build(lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=8, **WORDS)))


def llama():
    hf = pytest.importorskip("transformers")
    return build(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **WORDS, num_key_value_heads=2)))


def subject_of(model, **options):
    data = {"input_ids": IDS}
    network = trace(model, {"input_ids": IDS[:2]}, **options)
    return Subject.of(model, data, network=network, output="logits")


def one_at(i, n):
    return np.eye(n)[i]


@pytest.mark.parametrize("options", [{}, {"residual": "stream", "attention": "head"}], ids=["writer", "stream"])
def test_gpt2(options):
    model = gpt2()
    subject, body = subject_of(model, **options), model.transformer
    read = body.ln_f.weight[:, None] * model.lm_head.weight.T
    before = {}
    hook = body.ln_f.register_forward_pre_hook(lambda module, given: before.update(x=given[0]))
    body(IDS[:2])
    hook.remove()
    size = (before["x"] - before["x"].mean(-1, keepdim=True)).norm(dim=-1).median() / np.sqrt(8)
    for block in (0, 1):
        for name, directions in [
            ("mlp.c_fc", body.h[block].mlp.c_proj.weight),
            ("mlp.c_proj", torch.eye(8).double()),
            ("attn.c_proj", torch.eye(8).double()),
        ]:
            for unit in (0, 3):
                centred = directions[unit] - directions[unit].mean()
                found = direct_scores(subject, f"transformer.h.{block}.{name}", one_at(unit, len(directions)))
                assert_allclose(found, (centred @ read / size).numpy(), rtol=1e-5)
    centred = torch.eye(8)[5].double() - 1 / 8
    found = direct_scores(subject, "transformer.wte", one_at(5, 8))
    assert_allclose(found, (centred @ read / size).numpy(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"no direct path: (its units act through attention|a head writes as many)"):
        direct_scores(subject, "transformer.h.0.attn" + ("" if options else ".c_attn"), np.ones(2 if options else 24))


def test_llama():
    model = llama()
    subject, body = subject_of(model), model.model
    before = {}
    hook = body.norm.register_forward_pre_hook(lambda module, given: before.update(x=given[0]))
    body(IDS[:2])
    hook.remove()
    size = before["x"].norm(dim=-1).median() / np.sqrt(8)
    read = body.norm.weight[:, None] * model.lm_head.weight.T
    for name in ("up_proj", "gate_proj"):
        found = direct_scores(subject, f"model.layers.0.mlp.{name}", np.r_[0, 2.0, -1, np.zeros(9)])
        direction = body.layers[0].mlp.down_proj.weight @ torch.tensor(np.r_[0, 2.0, -1, np.zeros(9)])
        assert_allclose(found, (direction @ read / size).numpy(), rtol=1e-4)
    with pytest.raises(ValueError, match=r"layer 'model.layers.1.self_attn.q_proj' has no direct path"):
        direct_scores(subject, "model.layers.1.self_attn.q_proj", np.ones(8))


def test_the_package_s_own_transformer():
    model = transformer(tokens=11, length=6, width=8, heads=2, depth=2).double()
    ids = IDS % 11
    subject = Subject.of(model, (ids, ids.roll(-1, 1)))
    found = direct_scores(subject, "blocks.1.up", np.arange(32.0))
    moved = model.blocks[1].down.weight @ torch.arange(32.0).double()
    by_hand = model.scores.weight @ (moved - moved.mean())  # its last norm starts with gains of one
    assert_allclose(found / np.linalg.norm(found), (by_hand / by_hand.norm()).detach().numpy(), rtol=1e-5)


def test_networks_without_a_path_say_so():
    hf = pytest.importorskip("transformers")
    plain = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 30)).eval()
    with pytest.raises(ValueError, match="Sequential has no direct path: its blocks do not add to a residual stream"):
        direct_scores(Subject.of(plain, (IDS, IDS.roll(-1, 1))), "1", np.ones(6))
    bert = build(lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL, vocab_size=30, max_position_embeddings=8)))
    with pytest.raises(ValueError, match=r"no direct path: (between the residual|its units write|what)"):
        direct_scores(subject_of(bert), "bert.encoder.layer.1.output.dense", np.ones(8))
