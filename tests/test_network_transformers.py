"""Models of the transformers library, built small and random: traced as they come, and perturbed unit by unit.

The library is an extra (`pip install specialize_nb[transformers]`); without it these tests are skipped. Nothing is
downloaded.
"""

import sys

import pytest
import torch

from specialize_nb.network.perturbation import check_wiring
from specialize_nb.network.units import trace

hf = pytest.importorskip("transformers")

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 12}
WORDS = {"vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLACES = {"max_position_embeddings": 8}
IDS = {"input_ids": torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}
MASKED = IDS | {"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GPT2 = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 8}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2}
MODELS = {
    "GPT-2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, **WORDS)), IDS),
    "BERT": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**SMALL, **PLACES, vocab_size=30)), MASKED),
    "ViT": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**SMALL, image_size=8, patch_size=4)), IMAGES),
    "Llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **PLACES, **WORDS, num_key_value_heads=2)), IDS),
    "T5's encoder": (lambda: hf.T5EncoderModel(hf.T5Config(**T5, vocab_size=30)), IDS),
}


def build(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        draw = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        value.copy_(draw * 0.4 + ("norm" in name.lower() or "ln_" in name))
    return model


@pytest.mark.parametrize("options", [{}, {"attention": "head", "residual": "stream"}], ids=["features", "heads"])
@pytest.mark.parametrize("name", MODELS)
def test_the_wiring_is_true(name, options):
    make, x = MODELS[name]
    network = trace(build(make), x, **options)
    found = check_wiring(network, x)
    assert network.unknown == () and not network.refused
    assert found[["missing", "idle"]].sum().sum() == 0, found[found["missing"] + found["idle"] > 0]
    assert (found["edges"] > 0).sum() > 10 and (found["non_edges"] > 0).sum() > 10


def test_hidden_units_of_the_mlp_and_heads_have_their_own_layers():
    frame = trace(build(MODELS["GPT-2"][0]), IDS, attention="head").to_frame().set_index("layer")
    assert frame.loc["transformer.h.1.mlp.c_fc", ["unit", "n_units", "feeds"]].tolist() == [
        "neuron",
        32,
        "transformer.h.1.mlp.c_proj",
    ]
    assert frame.loc["transformer.h.0.attn", ["op", "unit", "n_units"]].tolist() == ["attention", "head", 2]


def test_the_cache_is_on_again_afterwards():
    model = build(MODELS["Llama"][0])
    trace(model, IDS)
    assert model.config.use_cache is True


def test_the_package_does_not_import_the_library():
    import subprocess

    code = "import sys, specialize_nb; print('transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
