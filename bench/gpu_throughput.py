"""How fast, beside bare suffix passes, a hook and a full pass a lesion, and Lucent's pictures; and a whole audit.

Weights and images are random. Convolutions round as PyTorch does by default on the device, which the JSON tells.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_agreement import hidden, language, mobile, typed
from gpu_frame import LeftOut, Setting, images, section, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from specialize_nb.audits.audit import audit, plan_audit
from specialize_nb.base.data import Batches
from specialize_nb.base.text import next_token
from specialize_nb.lesions.damage import damage_run
from specialize_nb.lesions.lesion import LesionEngine, measure_lesions
from specialize_nb.network.units import Network, trace
from specialize_nb.training.models import cnn

GOAL = 0.85  # Of the floor
HOOKS_S = 20.0  # About what a hook and a full pass for each lesion may take in all

Place = tuple[nn.Module, int, int]  # A module, at which of its calls, and how many it has in a pass
Hook = Callable[[Tensor], contextlib.AbstractContextManager]  # (n_units,) bool -> a block in which they are silenced


class Sweep(NamedTuple):
    """A network made ready, its data, and what is to be silenced."""

    model: nn.Module
    data: Batches
    engine: LesionEngine
    measures: list[Callable]
    groups: dict[str, np.ndarray]  # Layer -> (n_lesions, n_units) bool, all of them different
    hooks: dict[str, Hook | None]  # Layer -> how one silences its units by hand; None where no module puts them out
    loss: Callable[[Any, Tensor], Tensor]  # (outputs of the model, targets) -> (n,)


def ours(given: Sweep, name: str) -> np.ndarray:
    """(n_lesions,) damage, the mean over examples."""
    found = measure_lesions(given.engine, given.data, [{name: given.groups[name]}], given.measures)
    return found[0][0].mean(1)


def suffixes(given: Sweep, name: str) -> Callable[[], None]:
    """The same parts of the program on values ready to go: no masks, no measures, nothing before the lesion."""
    cut, table, calls = given.engine.cuts[(name,)], given.groups[name], []
    for part in given.engine.parts(given.data, (name,)):
        whole, left = divmod(len(table), part.n_together)
        for times, n in ((whole, part.n_together), (1, left)):
            none = {name: torch.zeros((n, table.shape[1]), dtype=torch.bool, device=given.engine.like.device)}
            fills = {name: given.engine.fills[name].rows(part.examples)}
            extra = [one[key] for key in cut.inside for one in (none, fills)]
            calls += [([*cut.stacked(part.kept, none, fills), *extra], times)] * (n > 0 and times > 0)

    @torch.inference_mode()
    def run() -> None:
        with given.engine.computing():
            for values, times in calls:
                for _ in range(times):
                    cut.parts[1](*values)

    return run


@torch.inference_mode()
def hooked(given: Sweep, name: str) -> np.ndarray:
    """(n_lesions,) mean losses, the way one writes it first, but that nothing is waited for before the end."""
    device, found = given.engine.like.device, []
    batches = [(typed(x, given.model), y.to(device)) for x, y in given.data]
    silenced = given.hooks[name] or (lambda group: contextlib.nullcontext())
    for group in torch.as_tensor(given.groups[name], device=device):
        with silenced(group):
            found.append(torch.cat([given.loss(given.model(x), y) for x, y in batches]).mean())
    return torch.stack(found).double().cpu().numpy()


def raced(setting: Setting, given: Sweep, ready_s: float) -> dict[str, Any]:
    """Layer by layer, in turn, after one lesion each to warm up."""
    layers, far = [], []
    few = given._replace(groups={name: table[:1] for name, table in given.groups.items()})
    none = given._replace(groups={name: table[:1] & False for name, table in given.groups.items()})
    intact = float(hooked(none, next(iter(given.groups)))[0])
    for name, table in given.groups.items():
        row: dict[str, Any] = dict(layer=name, lesions=len(table), hook=given.hooks[name] is not None)
        part = next(given.engine.parts(given.data, (name,)))
        row |= dict(stacked=part.n_together, images_a_call=part.examples.stop)
        ours(few, name), hooked(few, name), suffixes(few, name)()
        with setting.timed(row, "ours"):
            damage = ours(given, name)
        run = suffixes(given, name)
        with setting.timed(row, "bare"):
            run()
        del run
        with setting.timed(row, "hooks"):
            losses = hooked(given, name)
        if row["hook"]:
            far.append(float(np.abs(damage - (losses - intact)).max()))
        layers.append(row)
    return summed(given, layers, ready_s) | dict(farthest_mean_loss_nats=max(far, default=None))


def summed(given: Sweep, layers: list[dict[str, Any]], ready_s: float) -> dict[str, Any]:
    took = {side: sum(row[f"{side}_s"] for row in layers) for side in ("ours", "bare", "hooks")}
    n = sum(row["lesions"] for row in layers)
    return dict(
        model=type(given.model).__name__,
        images=given.data.n,
        lesions=n,
        set_up_s=ready_s,
        **{f"{side}_s": value for side, value in took.items()},
        share_of_floor=took["bare"] / took["ours"],
        share_of_floor_with_set_up=took["bare"] / (took["ours"] + ready_s),
        goal=GOAL,
        reaches_goal=took["bare"] / took["ours"] >= GOAL,
        times_as_fast_as_hooks=took["hooks"] / took["ours"],
        images_times_lesions_a_second=n * given.data.n / took["ours"],
        dtype=str(given.engine.like.dtype).removeprefix("torch."),
        notes=list(given.engine.notes),
        layers=layers,
    )


def made_ready(
    setting: Setting, model: nn.Module, data: Any, network: Network, names: list[str], loss: Callable, hook: Callable
) -> tuple[Sweep, float]:
    """Engine and groups; as many lesions as hooks can do in about their time, by one full pass that was timed."""
    told: dict[str, Any] = {}
    with setting.timed(told, "ready"):
        work = damage_run(model, data, network, names, n_boot=0).work
    measures = [one.measure for one in work.outcomes]
    hooks = {name: hook(name) for name in names}
    tables = {name: np.zeros((2, network.layer(name).n_units), bool) for name in names}
    given = Sweep(model, work.data, work.engine, measures, tables, hooks, loss)
    hooked(given, names[0])
    with setting.timed(told, "two"):
        hooked(given, names[0])
    share = min(HOOKS_S, setting.left_s / 5)
    n = int(np.clip(2 * share / (told["two_s"] * len(names)), 4, 48)) if not setting.tiny else 3
    rng = np.random.default_rng(1)
    groups = {name: different(rng, n, network.layer(name).n_units) for name in names}
    return given._replace(groups=groups), told["ready_s"]


def different(rng: np.random.Generator, n: int, n_units: int) -> np.ndarray:
    """(n, n_units) bool: random groups of a tenth of the units, or two, all of them different."""
    found: dict[bytes, np.ndarray] = {}
    while len(found) < n:
        row = np.zeros(n_units, bool)
        row[rng.permutation(n_units)[: max(2, n_units // 10)]] = True
        found[row.tobytes()] = row
    return np.stack(list(found.values()))


def pictured(setting: Setting, model: nn.Module, x: Tensor, y: Tensor, every: int = 1) -> dict[str, Any]:
    """The sweep over a classifier of images."""
    model = model.to(setting.device)
    network = trace(model, typed(x[:2], model))
    names = hidden(network)[::every]
    places = outputs_at(model, network, x[:2], names)

    def hook(name: str) -> Hook | None:
        return at_call(*places[name]) if name in places else None

    size = setting.size(64, 4)
    batches = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    loss = lambda scores, own: F.cross_entropy(scores, own, reduction="none")  # noqa: E731
    return raced(setting, *made_ready(setting, model, batches, network, names, loss, hook))


@torch.inference_mode()
def outputs_at(model: nn.Module, network: Network, x: Tensor, names: list[str]) -> dict[str, Place]:
    """Layer -> where the model puts out what its units do; layers that no module puts out are left out."""
    x = typed(x, model)
    wanted, found, calls = network.activations(x, names), {}, {}

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        for name, value in wanted.items():
            if isinstance(output, Tensor) and output.shape == value.shape and torch.allclose(output, value, rtol=1e-3):
                found[name] = module, calls[module] - 1

    handles = [module.register_forward_hook(look) for module in model.modules()]
    model(x)
    for handle in handles:
        handle.remove()
    return {name: (module, place, calls[module]) for name, (module, place) in found.items()}


def at_call(module: nn.Module, place: int, n_calls: int) -> Hook:
    """Silence units, along the second axis, at one of the calls that a module has in a pass."""

    @contextlib.contextmanager
    def silenced(group: Tensor) -> Iterator[None]:
        met = count()

        def hook(mod: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if next(met) % n_calls != place:
                return output
            return output.masked_fill(group.view(1, -1, *[1] * (output.ndim - 2)), 0.0)

        handle = module.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    return silenced


def torchvision_model(name: str) -> nn.Module:
    """With random weights; 'tiny' is a ResNet of one block a stage."""
    try:
        from torchvision.models import get_model, resnet
    except ImportError as error:
        raise LeftOut("torchvision is not installed") from error
    if name == "tiny":
        return seeded(lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]))
    return seeded(lambda: get_model(name, weights=None))


@section("sweep, ResNet-18 at 224", part="throughput", most_s=75, least_s=30)
def resnet18(setting: Setting) -> dict[str, Any]:
    side = setting.size(224, 32)
    x, y = images(setting.size(128, 4), (3, side, side), classes=1000)
    return pictured(setting, torchvision_model(setting.size("resnet18", "tiny")), x, y, every=setting.size(1, 4))


@section("sweep, ResNet-50 at 224", part="throughput", most_s=75, least_s=30)
def resnet50(setting: Setting) -> dict[str, Any]:
    if setting.tiny:  # the same code as before, with other numbers: a depthwise one in its place
        return pictured(setting, seeded(lambda: mobile(8)), *images(4, (3, 16, 16)), every=2)
    x, y = images(128, (3, 224, 224), classes=1000)
    return pictured(setting, torchvision_model("resnet50"), x, y, every=2)


@section("sweep, GPT-2 small", part="throughput", most_s=60, least_s=30)
def gpt2(setting: Setting) -> dict[str, Any]:
    """Heads and neurons of a block before the middle, and of one behind it."""
    model = language(*setting.size((12, 768, 12, 50257), (2, 16, 4, 50))).to(setting.device)
    words, shape = model.config.vocab_size, setting.size((16, 128), (3, 8))
    ids = torch.randint(words, shape, generator=torch.Generator().manual_seed(1))
    network = trace(model, typed(ids[:2], model), attention="head")
    blocks = setting.size((3, 8), (0, 1))
    names = [f"transformer.h.{block}.{part}" for block in blocks for part in ("attn", "mlp.c_fc")]
    return raced(setting, *made_ready(setting, model, next_token(ids), network, names, token_loss, silenced_in(model)))


def token_loss(outputs: Any, y: Tensor) -> Tensor:
    """(n,) the mean over the positions that count."""
    each = F.cross_entropy(outputs.logits.movedim(-1, 1), y, ignore_index=-100, reduction="none")
    return each.sum(1) / (y != -100).sum(1)


def silenced_in(model: nn.Module) -> Callable[[str], Hook]:
    """Heads and neurons are silenced in what the next product reads: heads side by side, or neurons."""

    def hook(name: str) -> Hook:
        reader, size = reads(model, name)

        @contextlib.contextmanager
        def silenced(group: Tensor) -> Iterator[None]:
            own = group.repeat_interleave(size)
            handle = reader.register_forward_pre_hook(lambda mod, inputs: inputs[0].masked_fill(own, 0.0))
            try:
                yield
            finally:
                handle.remove()

        return silenced

    return hook


def reads(model: nn.Module, name: str) -> tuple[nn.Module, int]:
    """The product that reads a layer, and how many numbers it reads of each unit."""
    block = model.transformer.h[int(name.split(".")[2])]
    return (block.mlp.c_proj, 1) if name.endswith("c_fc") else (block.attn.c_proj, block.attn.head_dim)


@section("pictures, beside render_vis", part="throughput", most_s=75, least_s=30)
def pictures(setting: Setting) -> dict[str, Any]:
    """Ours, Lucent's on a deep copy, and a bare loop, from one start."""
    try:
        import measure_pictures as beside
    except ImportError as error:
        raise LeftOut(f"{error.name} is not installed") from error
    if setting.device.type == "cpu" and torch.cuda.is_available():
        raise LeftOut("lucent paints on the GPU that is here, and the model is on the CPU")
    given = beside.scene(**scene_of(setting))
    told: dict[str, Any] = dict(pictures=len(given.groups), steps=given.steps, pixels=given.shape[-1])
    one = given._replace(groups=given.groups[:1], steps=2)
    for call in (beside.ours, beside.rendered, beside.bare):
        call(one)
    with setting.timed(told, "ours"):
        mine = beside.ours(given)
    with setting.timed(told, "bare"):
        beside.bare(given)
    with setting.timed(told, "render_vis"):
        theirs = beside.rendered(given)
    ratio = beside.reached(given, mine) / beside.reached(given, theirs)
    told |= dict(share_of_floor=told["bare_s"] / told["ours_s"], goal=GOAL)
    told |= dict(times_as_fast_as_render_vis=told["render_vis_s"] / told["ours_s"])
    return told | dict(response_over_theirs=dict(median=float(np.median(ratio)), least=float(ratio.min())))


def scene_of(setting: Setting) -> dict[str, Any]:
    """VGG-11 at 224 pixels; tiny: the reference network."""
    if setting.tiny:
        model = cnn(size=8, channels=(8, 8, 8))
        layer = [name for name, part in model.named_children() if isinstance(part, nn.Conv2d)][1]
        return dict(model=model, shape=(1, 8, 8), layer=layer, module=str(int(layer) + 1), n=2, steps=3)
    model = torchvision_model("vgg11").to(setting.device)
    return dict(model=model, shape=(3, 224, 224), layer="features.8", module="features.9", n=16, steps=64)


def trials(setting: Setting) -> list[dict[str, Any]]:
    """Audits from the whole one to smaller ones: the first that is expected to fit is run."""
    whole: dict[str, Any] = {}
    few, graph = dict(n_controls=19), dict(graphs=("weights",), scopes=("global",))
    return [whole, few, few | graph, few | graph | dict(matched=False)]


@section("audit, ResNet-18, 1,000 images at 224", part="throughput", most_s=600, least_s=60)
def audited(setting: Setting) -> dict[str, Any]:
    """The whole audit if it is expected to fit in the time left, else the largest that is: both are told."""
    side, n = setting.size(224, 8), setting.size(1000, 12)
    x, y = images(n, (setting.size(3, 1), side, side), classes=setting.size(1000, 10))
    model = cnn(size=8, channels=(8, 8, 8), dense=16) if setting.tiny else torchvision_model("resnet18")
    model, size = model.to(setting.device), setting.size(250, 6)
    data = [(x[i : i + size], y[i : i + size]) for i in range(0, n, size)]
    few: dict[str, Any] = dict(k=3, graphs=("weights",), scopes=("global",)) if setting.tiny else {}
    told: dict[str, Any] = dict(images=n, pixels=side, batch=size, dtype="float32")
    with setting.timed(told, "plan"):
        plans = plan_audit(model, data, probe_seconds=setting.size(2.0, 0.1), **few)
    told["planned"] = {name: one.headline for name, one in plans.items()}
    told["planned_whole_s"] = sum(one.seconds for one in plans.values())
    asked = dict(n_controls=9, alpha=0.2) if setting.tiny else fitting(setting, plans)
    told["asked"] = {name: repr(value) for name, value in asked.items()} or "all as it is by default"
    with setting.timed(told, "audit"):
        found = audit(model, data, **few, **asked)
    told |= dict(sub_clusters=len(found.verdicts()), stages_s=dict(found.seconds), headline=found.headline)
    return told | dict(whole=not asked, notes=list(found.notes))


def fitting(setting: Setting, plans: dict[str, Any]) -> dict[str, Any]:
    """By what the whole audit is expected to take, and how many lesions the smaller ones have beside it."""
    tables = {name: one.to_frame() for name, one in plans.items()}
    lesions = sum(table["n_lesions"].sum() for table in tables.values())
    a_lesion = sum(one.seconds for one in plans.values()) / max(lesions, 1)
    for asked in trials(setting):
        if not asked:
            needed = lesions
        else:
            kinds = [name for name in tables if "graphs" not in asked or name == "weights, global"]
            n = 1 + asked["n_controls"] * (1 + asked.get("matched", True))
            needed = n * sum(tables[name]["n_subclusters"].sum() for name in kinds)
        if needed * a_lesion < 0.6 * setting.left_s:
            return asked
    return asked
