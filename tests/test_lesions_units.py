"""Heads, neurons, residual dimensions and channels of real architectures, silenced: against eager hooks in float64.

The models are built small and random with the transformers library, an extra; without it their tests are skipped.
Nothing is downloaded.
"""

from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from specialize_nb.lesions.lesion import lesion_engine
from specialize_nb.network.subject import Subject
from specialize_nb.network.units import trace

IDS = torch.randint(3, 30, (4, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6, [1] * 3 + [0] * 3])
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 12}
WORDS = {"vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SMALL, **WORDS, "max_position_embeddings": 16, "num_key_value_heads": 2}


def of(model, config, **options):
    return lambda hf: getattr(hf, model)(getattr(hf, config)(**options))


MODELS = {
    "GPT-2": (of("GPT2LMHeadModel", "GPT2Config", n_layer=2, n_head=4, n_embd=16, n_positions=8, **WORDS), "logits"),
    "Llama": (of("LlamaForCausalLM", "LlamaConfig", **GROUPED), "logits"),
    "Qwen2": (of("Qwen2ForCausalLM", "Qwen2Config", **GROUPED), "logits"),
    "Mistral": (of("MistralForCausalLM", "MistralConfig", **GROUPED, sliding_window=3), "logits"),
    "BERT": (of("BertForMaskedLM", "BertConfig", **SMALL, vocab_size=30, max_position_embeddings=8), "logits"),
    "T5's encoder": (
        of("T5EncoderModel", "T5Config", d_model=16, d_kv=4, d_ff=12, num_layers=2, num_heads=4, vocab_size=30),
        None,
    ),
    "ViT": (of("ViTForImageClassification", "ViTConfig", **SMALL, image_size=8, patch_size=4, num_labels=5), None),
}
ATTENTION = {"transformer.h": "attn", "model.layers": "self_attn", "vit.layers": "attention"}


def built(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double().eval().requires_grad_(False)
        for name, value in model.named_parameters():
            draw = torch.randn(value.shape, dtype=torch.float64)
            value.copy_(draw * 0.4 + ("norm" in name.lower() or "ln_" in name))
    return model


def without(value, units, axis=-1):
    shape = [1] * value.ndim
    shape[axis] = -1
    return value * (~units).view(shape)


def first(out):
    return out[0] if isinstance(out, tuple) else out


def put(out, value):
    return (value, *out[1:]) if isinstance(out, tuple) else value


@contextmanager
def silenced(model, network, name, units):
    """Inside the block units of a layer put out 0, by hooks on modules, and nothing of the package."""
    layer, handles = network.layer(name), ExitStack()
    block, _, twice = name.partition("#")
    module = model.get_submodule(block) if layer.op != "sum" or hasattr(model.get_submodule(block), "forward") else None
    if layer.unit == "head":
        (target,) = {wire.target for wire in network.wires if wire.source == name}
        wide = units.repeat_interleave(layer.shape[-1])
        handle = model.get_submodule(target).register_forward_pre_hook(lambda m, given: (without(given[0], wide),))
    elif layer.op == "sum" and not twice and (inner := ATTENTION.get(block.rpartition(".")[0])):
        kept = []  # the sum of what comes into the block and of its attention

        def keep(m, given, named):
            kept[:] = [given[0] if given else named["hidden_states"]]

        handles.callback(module.register_forward_pre_hook(keep, with_kwargs=True).remove)
        cancelled = lambda m, given, out: put(out, torch.where(units, -kept[0], first(out)))  # noqa: E731
        handle = module.get_submodule(inner).register_forward_hook(cancelled)
    else:
        axis = 1 if layer.op == "conv2d" else -1
        handle = module.register_forward_hook(lambda m, given, out: put(out, without(first(out), units, axis)))
    handles.callback(handle.remove)
    with handles:
        yield


def scored(model, data, output):
    found = model(**data) if isinstance(data, dict) else model(data)
    return found[output or next(iter(found))].flatten(1)


def groups_of(n):
    """Some units alone, two random groups, and all."""
    rng = np.random.default_rng(0)
    groups = np.stack([*np.eye(n, dtype=bool)[[0, n // 2, n - 1]], *(rng.random((2, n)) < 0.4), np.ones(n, dtype=bool)])
    return torch.as_tensor(groups)


def check(model, data, network, name, output):
    subject = Subject.of(model, data, network=network, output=output)
    engine = lesion_engine(subject, None, None, [name])
    groups = groups_of(network.layer(name).n_units)
    found = torch.cat([engine.scores(part, {name: groups}) for part in engine.parts(subject.data, (name,))], dim=1)
    intact = scored(model, data, output)
    for own, ours in zip(groups, found, strict=True):
        with silenced(model, network, name, own), torch.no_grad():
            right = scored(model, data, output)
        assert_allclose(ours.flatten(1), right, rtol=0, atol=1e-6 * float(right.abs().max()), err_msg=name)
        assert not own.all() or (right - intact).abs().max() > 1e-3 * intact.abs().max(), name


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_lesions_are_those_of_hooks(name):
    hf = pytest.importorskip("transformers")
    make, output = MODELS[name]
    model = built(lambda: make(hf))
    data = IMAGES if name == "ViT" else {"input_ids": IDS} | ({"attention_mask": MASK} if name == "BERT" else {})
    network = trace(model, data, attention="head", residual="stream")
    kinds = {(network.layer(one).unit, network.layer(one).op) for one in network.hidden}
    assert {unit for unit, _ in kinds} >= {"head", "neuron", "dimension"} and any(op == "sum" for _, op in kinds)
    for one in network.hidden:
        check(model, data, network, one, output)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Mistral"])
def test_grouped_queries(name):
    """A head is a query's; the heads of a group share keys and values, which stay when one of them is silenced."""
    hf = pytest.importorskip("transformers")
    model = built(lambda: MODELS[name][0](hf))
    heads = trace(model, {"input_ids": IDS}, attention="head")
    attention = heads.layer("model.layers.0.self_attn")
    assert (attention.unit, attention.n_units) == ("head", 4)
    features = trace(model, {"input_ids": IDS})
    sizes = {one: features.layer(f"model.layers.0.self_attn.{one}_proj").n_units for one in "qkv"}
    assert sizes == {"q": 16, "k": 8, "v": 8}
    for one in "qkv":
        check(model, {"input_ids": IDS}, features, f"model.layers.0.self_attn.{one}_proj", "logits")


class UNet(nn.Module):
    """Two scales and a skip; a class for each pixel."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.join = nn.Sequential(nn.Conv2d(12, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        fine = self.down(x)
        return self.out(self.join(torch.cat([fine, self.up(self.deep(self.pool(fine)))], 1)))


def test_a_unet():
    model = built(UNet)
    y = torch.randint(4, (3, 8, 8), generator=torch.Generator().manual_seed(1))
    network = trace(model, IMAGES)
    assert set(network.hidden) == {"down.0", "deep.0", "up", "join.0"}
    subject = Subject.of(model, (IMAGES, y), network=network)
    assert subject.task == "dense"
    engine = lesion_engine(subject, None, None, list(network.hidden))
    for name in network.hidden:
        groups = groups_of(network.layer(name).n_units)
        parts = engine.parts(subject.data, (name,))
        found = torch.cat([engine.scores(part, {name: groups}) for part in parts], dim=1)
        module = model.get_submodule(name.replace(".0", ".2"))  # after the activation
        for own, ours in zip(groups, found, strict=True):
            handle = module.register_forward_hook(lambda m, given, out, own=own: without(out, own, 1))
            right = model(IMAGES).flatten(1)
            handle.remove()
            assert_allclose(ours.flatten(1), right, rtol=0, atol=1e-6 * float(right.abs().max()), err_msg=name)
