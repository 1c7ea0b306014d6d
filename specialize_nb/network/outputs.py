"""What a network says: which of its outputs holds the scores, what they are for all data, and of what kind they are.

A plain module, not a notebook: mechanism without a story. Everything that measures a model by what it says asks here
first, so that outputs that are not numbers, and scores that are probabilities already, are met before anything is
measured. `Subject` keeps what is found.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from specialize_nb.base.data import Batches
from specialize_nb.base.devices import to_model
from specialize_nb.base.targets import Task
from specialize_nb.base.words import check_choice, suggest
from specialize_nb.network.bounds import Bounds, bounds_of, is_logarithm, last_operation
from specialize_nb.network.inputs import naming_batch, which
from specialize_nb.network.operations import op_name
from specialize_nb.network.units import Network

__all__ = [
    "Outputs",
    "Scale",
    "ScoresNode",
    "batches_of_outputs",
    "check_outputs",
    "choose_output",
    "least_probability",
    "read_outputs",
    "scale_of",
    "told_outputs",
]

Scale = Literal["logits", "probabilities"]

_MOST = 2**26  # numbers of all outputs that are kept
_OFF = 1e-3  # by which probabilities may miss 1 in sum, or lie outside 0 and 1


class _Disguise(NamedTuple):
    """What scores may be besides logits and probabilities."""

    make: Callable[[Tensor], Tensor]  # Probabilities of them
    off: float  # By which these may miss 1 in sum
    advice: str


_DISGUISES = {
    "percentages": _Disguise(lambda s: s / 100, 2e-2, "divide them by 100"),
    "logarithms to base 2 of probabilities": _Disguise(torch.exp2, _OFF, "multiply them by log(2)"),
    "logarithms to base 10 of probabilities": _Disguise(lambda s: 10.0**s, _OFF, "multiply them by log(10)"),
    "negative logarithms of probabilities": _Disguise(lambda s: (-s).exp(), _OFF, "turn their sign"),
    "odds of probabilities": _Disguise(lambda s: s / (1 + s), _OFF, "give their logarithms, or the probabilities"),
}


class ScoresNode(NamedTuple):
    """The output that holds the scores, or the numbers that are predicted.

    Attributes
    ----------
    node : str
        Of the traced program
    n : int
        Numbers an example
    label : str
        What the model calls it: a key, a place; '' for an output that is alone
    note : str
        Which it is, if there was a choice, a sentence; else ''
    """

    node: str  # Of the traced program
    n: int  # Numbers an example
    label: str  # What the model calls it: a key, a place; '' for an output that is alone
    note: str  # Which it is, if there was a choice, a sentence; else ''


_NEEDED: dict[Task, str] = {
    "classes": "(batch, classes) scores, two classes or more",
    "labels": "(batch,) or (batch, labels) floating numbers",
    "numbers": "floating numbers for each example",
    "none": "floating numbers for each example",
}


def choose_output(
    network: Network,  # Whose outputs
    *,
    task: Task = "classes",  # What is to be predicted
    output: str | int | None = None,  # Its name or place; None: the only one that can be it, or the one called 'logits'
    width: int | None = None,  # Numbers an example that the targets need, for classes at least; None: not known
) -> ScoresNode:
    """Where does the network put out its class scores, or the numbers it predicts?

    Parameters
    ----------
    network : Network
        Whose outputs
    task : Task, default 'classes'
        What is to be predicted
    output : str | int | None, default None
        Its name or place; None: the only one that can be it, or the one called 'logits'
    width : int | None, default None
        Numbers an example that the targets need, for classes at least; None: not known

    Returns
    -------
    ScoresNode

    Raises: `ValueError` if no output can be it, or more than one; it lists them, with their shapes.
    """
    pairs = _outputs(network)
    if output is not None:
        return _named(network, pairs, task, str(output))
    fitting = {node: label for label, node in reversed(pairs) if _fits(network, node, task)}
    called = [node for node, label in fitting.items() if label.split(".")[-1] == "logits"]
    sizes = {node: _size(network, node) for node in fitting}
    wide = [node for node, n in sizes.items() if width and (n >= width if task == "classes" else n == width)]
    chosen = next((found for found in (called, list(fitting), wide) if len(found) == 1), [])
    if chosen:
        label = fitting[chosen[0]]
        told = f"The scores are the output {label!r}, one of {told_outputs(network)}; `output=` chooses another."
        return ScoresNode(chosen[0], _size(network, chosen[0]), label, told if len(fitting) > 1 else "")
    raise ValueError(_refusal(network, pairs, task, len(fitting)))


def _refusal(network: Network, pairs: list[tuple[str, str]], task: Task, n_fitting: int) -> str:
    """Why no output could be chosen, and what to do."""
    found = f"the output of {network.model} is {told_outputs(network)}"
    if n_fitting > 1:
        return f"{found}: {n_fitting} of them can be it; say which with output={pairs[0][0]!r} or another name"
    one = [node for _, node in pairs if _fits(network, node, "labels") and _size(network, node) == 1]
    if task == "classes" and one:
        told = f"{network.model} puts out one score an example; class scores need two classes or more"
        return f"{told}: give labels of 0 and 1 (task='labels'), or numbers to predict (task='numbers')"
    needed = "it has to be" if len(pairs) == 1 else "one of them has to be"
    return f"{found}; {needed} one tensor of {_NEEDED[task]}, for task={task!r}"


def _named(network: Network, pairs: list[tuple[str, str]], task: Task, output: str) -> ScoresNode:
    """The output of that name, or at that place, if it will do."""
    labels = [label for label, _ in pairs]
    if output not in labels and output.removeprefix("-").isdecimal() and -len(labels) <= int(output) < len(labels):
        output = labels[int(output)]
    if output not in labels:
        alone = "" if labels != [""] else "it is alone and has no name: leave `output` out"
        close = alone or suggest(output, [label for label in labels if label], "output")
        raise ValueError(f"{network.model} has no output {output!r}: {close}; it puts out {told_outputs(network)}")
    node = pairs[labels.index(output)][1]
    if not _fits(network, node, task):
        told = f"the output {output!r} of {network.model} is {_told(network, node)}"
        raise ValueError(f"{told}; for task={task!r} it has to be {_NEEDED[task]}; it puts out {told_outputs(network)}")
    return ScoresNode(node, _size(network, node), output, "")


def _outputs(network: Network) -> list[tuple[str, str]]:
    """Name and node of every output."""
    return list(zip(network.program.labels, network.program.outputs, strict=True))


def _fits(network: Network, node: str, task: Task) -> bool:
    """Can an output be the scores of such a task? Its examples lie along its first axis, with nothing beside them."""
    program, value = network.program, network.program.value(node)
    layout = program.layouts.get(node)
    if layout is None or layout.axis != 0 or layout.outer * layout.inner != 1 or not value.is_floating_point():
        return False
    if task == "classes":
        return value.ndim == 2 and _size(network, node) >= 2
    return _size(network, node) >= 1 and (value.ndim <= 2 or task != "labels")


def _size(network: Network, node: str) -> int:
    """Numbers an example."""
    return math.prod(network.program.shape(node))


def told_outputs(
    network: Network,  # Whose outputs
) -> str:
    """Every output with its name and shape, in words.

    Parameters
    ----------
    network : Network
        Whose outputs

    Returns
    -------
    str
    """
    return "; ".join(f"{label!r} {_told(network, node)}".removeprefix("'' ") for label, node in _outputs(network))


def _told(network: Network, node: str) -> str:
    """The shape of a value in words."""
    value, layout = network.program.value(node), network.program.layouts.get(node)
    if layout is None:
        return "a plain number"
    sizes = [str(size) for size in value.shape]
    if layout.axis is not None:
        each = layout.outer * layout.inner
        sizes[layout.axis] = "batch" if each == 1 else f"{each} * batch"
    shape = f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
    return shape if value.is_floating_point() else f"{shape} {str(value.dtype).removeprefix('torch.')}"


# What it says of all data


@dataclass(frozen=True, eq=False, kw_only=True)
class Outputs:
    """What a network says of all data, intact.

    Attributes
    ----------
    values : np.ndarray | None
        (n, d) of its own type, float32 at least, read-only; None if too many to be kept
    low : float
        Smallest number that is finite
    high : float
        Largest
    off : float
        By how much the numbers of an example miss 1 in sum, at most
    disguised : Mapping[str, float]
        The same of the probabilities that they would be, were they percentages, say
    masked : np.ndarray
        (n,) bool: examples with a number -inf
    broken : np.ndarray
        (n,) bool: examples with a number that is NaN or +inf
    wrong : np.ndarray
        (n,) bool: examples whose right class is -inf, or all of whose numbers are
    dtype : torch.dtype
        Of the model's output
    """

    values: np.ndarray | None  # (n, d) of its own type, float32 at least, read-only; None if too many to be kept
    low: float  # Smallest number that is finite
    high: float  # Largest
    off: float  # By how much the numbers of an example miss 1 in sum, at most
    disguised: Mapping[str, float]  # The same of the probabilities that they would be, were they percentages, say
    masked: np.ndarray  # (n,) bool: examples with a number -inf
    broken: np.ndarray  # (n,) bool: examples with a number that is NaN or +inf
    wrong: np.ndarray  # (n,) bool: examples whose right class is -inf, or all of whose numbers are
    dtype: torch.dtype  # Of the model's output


def batches_of_outputs(
    model: nn.Module,  # In eval mode; returned as it was found
    network: Network,  # Traced from it
    data: Batches,  # Checked data
    node: str,  # The output
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batch by batch (n, d) numbers that the model puts out, and targets.

    Parameters
    ----------
    model : nn.Module
        In eval mode; returned as it was found
    network : Network
        Traced from it
    data : Batches
        Checked data
    node : str
        The output

    Returns
    -------
    Iterator[tuple[Tensor, Tensor]]

    Raises: `ValueError` if the model fails on a batch, or puts out another number of rows than there are examples.
    """
    run = network.program.extract(network.program.inputs, [node])
    for i, (x, y) in enumerate(data):
        tensors = network.program.arguments(to_model(x, model))
        with naming_batch(model, i, x), torch.no_grad(), network.program.drawing(tensors):
            (value,) = run(*tensors)
        value = network.program.examples_first(node, value)
        if len(value) != len(y):
            told = f"{network.model} puts out {tuple(value.shape)} for the {len(y)} examples of batch {i}"
            raise ValueError(f"{told}: the first axis of its output has to count examples")
        yield value.flatten(1) if value.ndim > 1 else value[:, None], y


def read_outputs(
    model: nn.Module,  # In eval mode; returned as it was found
    network: Network,  # Traced from it
    data: Batches,  # Checked data
    node: str,  # The output
) -> Outputs:
    """What does the model say of all data? One pass.

    Parameters
    ----------
    model : nn.Module
        In eval mode; returned as it was found
    network : Network
        Traced from it
    data : Batches
        Checked data
    node : str
        The output

    Returns
    -------
    Outputs

    Raises: `ValueError` if the model fails on a batch, or puts out another number of rows than there are examples.
    """
    parts: list[np.ndarray] = []
    flags: dict[str, list[np.ndarray]] = {"masked": [], "broken": [], "wrong": []}
    low, high, off, keep, dtype = math.inf, -math.inf, 0.0, True, torch.float32
    disguised = dict.fromkeys(_DISGUISES, 0.0)
    for value, y in batches_of_outputs(model, network, data, node):
        dtype, wide = value.dtype, value.to(torch.promote_types(value.dtype, torch.float32))
        none, finite = wide == -math.inf, wide.isfinite()
        flags["masked"].append(none.any(1).cpu().numpy())
        flags["broken"].append((~(finite | none)).any(1).cpu().numpy())
        flags["wrong"].append((none.all(1) | _right_is_masked(none, y, data.task)).cpu().numpy())
        if bool(finite.any()):
            low, high = min(low, float(wide[finite].min())), max(high, float(wide[finite].max()))
        off = max(off, float((wide.sum(1) - 1).abs().nan_to_num(math.inf, math.inf).max()))
        disguised = {name: max(most, _missed(_DISGUISES[name].make(wide))) for name, most in disguised.items()}
        keep = keep and data.n * value.shape[1] <= _MOST
        if keep:
            parts.append(wide.cpu().numpy())
        else:
            parts.clear()
    values = np.concatenate(parts) if keep else None
    if values is not None:
        values.setflags(write=False)
    told = {name: np.concatenate(rows) for name, rows in flags.items()}
    return Outputs(values=values, low=low, high=high, off=off, disguised=disguised, dtype=dtype, **told)


def _missed(shares: Tensor) -> float:
    """By how much rows miss 1 in sum, at most; infinite if any number is below 0."""
    off = float((shares.sum(1) - 1).abs().nan_to_num(math.inf, math.inf).max())
    return math.inf if bool((shares < 0).any()) else off


def _right_is_masked(none: Tensor, y: Tensor, task: Task) -> Tensor:
    """(n,) bool: is the right answer said to be impossible?"""
    if task == "classes":
        inside = y.to(none.device).clamp(max=none.shape[1] - 1)
        return none.gather(1, inside[:, None])[:, 0] & (y.to(none.device) < none.shape[1])
    if task == "labels" and y.shape[1:] == none.shape[1:]:
        return (none & (y.to(none.device) == 1)).any(1)
    return none.any(1) if task == "numbers" else none.new_zeros(len(none))


def check_outputs(
    found: Outputs,  # Of all data
    model: str,  # Its name
    task: Task,  # What is to be predicted
) -> None:
    """Can the outputs be measured?

    -inf is fine where it masks a class that is not the right one.

    Parameters
    ----------
    found : Outputs
        Of all data
    model : str
        Its name
    task : Task
        What is to be predicted

    Raises: `ValueError` that names the examples for which they cannot.
    """
    advice = "leave these examples out, or mend the model, such as a logarithm or a division by zero"
    if found.broken.any():
        raise ValueError(f"{model} puts out NaN or +inf for {which(found.broken)}, with nothing lesioned: {advice}")
    if found.wrong.any():
        told = "all scores or that of the right answer" if task in ("classes", "labels") else "numbers"
        raise ValueError(f"{model} puts out -inf as {told} for {which(found.wrong)}, with nothing lesioned: {advice}")


def scale_of(
    found: Outputs,  # Of all data
    network: Network,  # Whose
    node: str,  # The output
    task: Task,  # What is to be predicted
    said: Scale | None = None,  # What the user says they are
) -> tuple[Scale, tuple[str, ...]]:
    """Are the scores logits, or probabilities already? And what was decided, a sentence each.

    Scores are taken as probabilities if they lie in [0, 1] and sum to 1 in every example; for several labels, if they
    lie in [0, 1] and the last operations of the model cannot make other numbers, or are not known.

    Parameters
    ----------
    found : Outputs
        Of all data
    network : Network
        Whose
    node : str
        The output
    task : Task
        What is to be predicted
    said : Scale | None, default None
        What the user says they are

    Returns
    -------
    tuple[Scale, tuple[str, ...]]

    Raises: `ValueError` if they cannot be the probabilities that they are said to be, or look like something else.
    Warns: `UserWarning` if they are taken as probabilities without being said to be.
    """
    if said is not None:
        check_choice("scores", said, ("logits", "probabilities"))
    off = _OFF if found.dtype in (torch.float32, torch.float64) else 10 * _OFF
    inside = found.low >= -off and found.high <= 1 + off and not found.masked.any()
    summed = found.off <= off
    if said == "probabilities" and not (inside and (summed or task != "classes")):
        told = f"the scores of {network.model} lie between {found.low:.3g} and {found.high:.3g}"
        told += f" and miss 1 in sum by up to {found.off:.3g}" if task == "classes" else ""
        raise ValueError(f"{told}: they are no probabilities; say scores='logits', or leave `scores` out")
    if said is not None:
        return said, _told_rough(found, network, task) if said == "probabilities" and task != "numbers" else ()
    if task == "numbers":
        return "logits", ()
    _check_scale(found, network, node, task, off)
    if not inside:
        return "logits", ()
    if not _squashed(network, node, task, summed):
        return "logits", _doubted(network, node, task)
    how = "lie in [0, 1] and sum to 1" if task != "labels" else "lie in [0, 1]"
    told = f"The scores of {network.model} {how}: they are taken as probabilities, not as logits"
    warnings.warn(f"{told}; say scores='logits' or scores='probabilities' to decide it", UserWarning, stacklevel=4)
    return "probabilities", (f"{told} (`scores=` says otherwise).", *_told_rough(found, network, task))


def _check_scale(found: Outputs, network: Network, node: str, task: Task, off: float) -> None:
    """Are the scores in the units of logits or probabilities, and not in others?"""
    told, what, advice = f"the scores of {network.model}", "", ""
    if task == "labels":
        last, held = last_operation(network, node), bounds_of(network, node)
        if last is not None and is_logarithm(last):
            name = op_name(last).removesuffix("_forward").lstrip("_").replace("_", "-")
            what, advice = f"come from a {name}: they are logarithms of probabilities", "give the model without it"
        elif held.low >= 0 and held.high == 100:
            what, advice = "are held between 0 and 100: they look like percentages", _DISGUISES["percentages"].advice
    elif found.low < found.high and network.program.shape(node)[-1:] != (1,):
        looks = [name for name, one in _DISGUISES.items() if found.disguised[name] <= max(one.off, off)]
        if looks:
            what, advice = f"look like {looks[0]}, not like logits", _DISGUISES[looks[0]].advice
    if what:
        raise ValueError(f"{told} {what}; {advice}, or say scores='logits' to take them as they are")


def least_probability(
    dtype: torch.dtype,  # Of the probabilities
) -> float:
    """What is taken for a probability of exactly 0: the smallest above it that its type tells well.

    Parameters
    ----------
    dtype : torch.dtype
        Of the probabilities

    Returns
    -------
    float
    """
    known = torch.finfo(dtype)
    return known.tiny * (known.eps if known.bits < 32 else 1.0)  # halves go on below `tiny`


def _told_rough(found: Outputs, network: Network, task: Task) -> tuple[str, ...]:
    """What probabilities cannot tell, as logits could, a sentence each."""
    notes, name, known = [], str(found.dtype)[6:], torch.finfo(found.dtype)
    if found.low <= 0 or (task == "labels" and found.high >= 1):
        least = least_probability(found.dtype)
        which_ones = "0 or 1" if task == "labels" else "0"
        told = f"Some probabilities that {network.model} puts out are exactly {which_ones}, as {name} tells them"
        held = f"they are taken as {least:.2g} away from it, and no loss of theirs is above {-math.log(least):.1f} nats"
        notes.append(f"{told}: {held}; logits would tell more.")
    if known.bits < 32:
        told = f"The probabilities that {network.model} puts out are {name}, which rounds each loss"
        notes.append(f"{told} by up to {known.eps / 2:.0e} nats; logits, or float32, would tell more.")
    return tuple(notes)


def _doubted(network: Network, node: str, task: Task) -> tuple[str, ...]:
    """Scores in [0, 1] that are taken as logits: is that meant?"""
    last = last_operation(network, node)
    if task == "labels":
        told = f"The scores of {network.model} lie in [0, 1], but nothing in the model is known to hold them there"
        return (f"{told}: they are taken as logits; say scores='probabilities' if they are probabilities.",)
    if task != "classes" or last is None or bounds_of(network, node) != Bounds(0.0, 1.0):
        return ()
    told = f"The scores of {network.model} come from a {op_name(last)} and lie in [0, 1], but do not sum to 1"
    advice = "give the model without it, or labels of 0 and 1 (task='labels'), if they are probabilities"
    warnings.warn(f"{told}: they are taken as logits; {advice}", UserWarning, stacklevel=5)
    return (f"{told}: they are taken as logits.",)


def _squashed(network: Network, node: str, task: Task, summed: bool) -> bool:
    """Do scores in [0, 1] come from operations that keep them there?"""
    if task != "labels":
        return summed and network.program.shape(node)[-1:] != (1,)
    return last_operation(network, node) is None or bounds_of(network, node).within(0, 1)
