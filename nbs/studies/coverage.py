"""Traces every classification model of torchvision, and small random models of transformers and timm where installed.

    python nbs/studies/coverage.py          # all: about a quarter of an hour on two cores, up to 10 GB of memory
    python nbs/studies/coverage.py resnet   # those whose name has the word

Writes coverage.csv beside this file: a row a model. No weights are downloaded.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torchvision
from torch import nn

from specialize_nb import Network, trace

HERE = Path(__file__).resolve().parent


def torchvision_models() -> Iterator[tuple[str, Callable[[], nn.Module], object]]:
    for name in torchvision.models.list_models(module=torchvision.models):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        size = 299 if name == "inception_v3" else 256 if name.startswith("swin_v2") else 224
        yield name, lambda n=name, o=options: torchvision.models.get_model(n, weights=None, **o), (2, 3, size, size)


def language_models() -> Iterator[tuple[str, Callable[[], nn.Module], object]]:
    try:
        import transformers as hf
    except ImportError:
        print("transformers is not installed: its models are left out", file=sys.stderr)
        return
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    words = {"vocab_size": 90, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    ids = {"input_ids": torch.arange(14).view(2, 7)}
    gpt = hf.GPT2Config(n_layer=2, n_head=4, n_embd=16, n_positions=16, **words)
    yield "GPT2LMHeadModel", lambda: hf.GPT2LMHeadModel(gpt), ids
    llama = hf.LlamaConfig(**small, **words, num_key_value_heads=2, max_position_embeddings=16)
    yield "LlamaForCausalLM", lambda: hf.LlamaForCausalLM(llama), ids
    qwen = hf.Qwen2Config(**small, **words, num_key_value_heads=2, max_position_embeddings=16)
    yield "Qwen2ForCausalLM", lambda: hf.Qwen2ForCausalLM(qwen), ids
    bert = hf.BertConfig(**small, vocab_size=90, max_position_embeddings=16)
    masked = ids | {"attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    yield "BertForSequenceClassification", lambda: hf.BertForSequenceClassification(bert), masked
    t5 = hf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=90)
    yield "T5EncoderModel", lambda: hf.T5EncoderModel(t5), ids
    vit = hf.ViTConfig(**small, image_size=16, patch_size=4)
    yield "ViTForImageClassification", lambda: hf.ViTForImageClassification(vit), (2, 3, 16, 16)


def timm_models() -> Iterator[tuple[str, Callable[[], nn.Module], object]]:
    try:
        import timm
    except ImportError:
        print("timm is not installed: its models are left out", file=sys.stderr)
        return
    for name in (
        "resnet26d",
        "mixer_s32_224",
        "deit_tiny_patch16_224",
        "convnextv2_atto",
        "regnety_002",
        "ghostnet_050",
    ):
        yield name, lambda n=name: timm.create_model(n, pretrained=False), (2, 3, 224, 224)


def count_edges(network: Network) -> int:
    """Pairs of units that share a weight."""
    pairs: dict[tuple[str, str], list] = {}
    for wire in network.wires:
        pairs.setdefault((wire.source, wire.target), []).append(wire)
    total = 0
    for wires in pairs.values():
        if all(wire.groups == 1 for wire in wires):
            ends = [np.unique(np.concatenate([getattr(w, end)[1] for w in wires])) for end in ("rows", "columns")]
            total += len(ends[0]) * len(ends[1])
        else:
            joined = set()
            for wire in wires:
                n_rows, n_columns = (len(wire.weight) // wire.groups, wire.weight.shape[1])
                for group in range(wire.groups):
                    rows = wire.rows[1][wire.rows[0] // n_rows == group]
                    columns = wire.columns[1][wire.columns[0] // n_columns == group]
                    joined.update((int(a), int(b)) for a in np.unique(columns) for b in np.unique(rows))
            total += len(joined)
    return total


def measure(library: str, name: str, make: Callable[[], nn.Module], example: object) -> dict:
    x = torch.zeros(example) if isinstance(example, tuple) else example
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = make().eval()
        start = time.perf_counter()
        network = trace(model, x)
        seconds = time.perf_counter() - start
    return {
        "library": library,
        "model": name,
        "layers": len(network.layers),
        "units": sum(layer.n_units for layer in network.layers),
        "edges": count_edges(network),
        "wires": len(network.wires),
        "seconds": round(seconds, 2),
        "unknown": "; ".join(op.op for op in network.unknown) or network.refused,
    }


def main(words: list[str]) -> None:
    sources = {"torchvision": torchvision_models, "transformers": language_models, "timm": timm_models}
    rows = []
    for library, source in sources.items():
        for name, make, example in source():
            if all(word in name for word in words):
                rows.append(measure(library, name, make, example))
                print(rows[-1], flush=True)
    if not words:
        pd.DataFrame(rows).to_csv(HERE / "coverage.csv", index=False)


if __name__ == "__main__":
    main(sys.argv[1:])
