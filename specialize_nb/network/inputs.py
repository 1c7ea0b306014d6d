"""What a network is given: which types of numbers it takes, and which positions of a sequence are padding.

A plain module, not a notebook: mechanism without a story. Sequences of one batch are made equally long with positions
that mean nothing. A mask among the inputs, lengths, or the model's own pad token tells which they are; `Padding` says
for every batch which positions count, and whatever averages over positions averages over those.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from specialize_nb.base.data import Batches
from specialize_nb.base.devices import floating_type, to_model
from specialize_nb.base.numbers import same_numbers
from specialize_nb.network.lookups import check_lookup
from specialize_nb.network.program import without_fast_paths
from specialize_nb.network.state import as_found
from specialize_nb.network.units import Network

__all__ = [
    "Padding",
    "evened",
    "named_inputs",
    "naming_batch",
    "padding_of",
    "places_that_count",
    "suited",
    "told_of_state",
    "which",
]

_MOST = 5  # examples named in a message


def which(
    found: np.ndarray,  # (n,) bool, True for the examples that are meant
    places: np.ndarray | None = None,  # (n,) where they stand in the data as given; None: as they come
) -> str:
    """How many examples, and which: the first few by their place in the data.

    Parameters
    ----------
    found : np.ndarray
        (n,) bool, True for the examples that are meant
    places : np.ndarray | None, default None
        (n,) where they stand in the data as given; None: as they come

    Returns
    -------
    str
    """
    meant = np.flatnonzero(found) if places is None else places[np.flatnonzero(found)]
    named = ", ".join(map(str, meant[:_MOST])) + (", ..." if len(meant) > _MOST else "")
    return f"{len(meant):,} of {len(found):,} examples ({'number' if len(meant) == 1 else 'numbers'} {named})"


@contextmanager
def naming_batch(
    model: nn.Module,  # What is run
    batch: int,  # Place of the batch in the data, from 0
    x: Any,  # Its inputs
) -> Iterator[None]:
    """Inside the block an exception of the model is told with the batch that it came from.

    Parameters
    ----------
    model : nn.Module
        What is run
    batch : int
        Place of the batch in the data, from 0
    x : Any
        Its inputs

    Returns
    -------
    Iterator[None]

    Raises: `ValueError` with the batch, its shapes and what the model said; `MemoryError` and its like as they are.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may raise anything
        check_lookup(model, error, lambda: _call(model, x), where=f" on batch {batch} of the data")
        shapes = ", ".join(f"{tuple(one.shape)} {str(one.dtype)[6:]}" for one in pytree.tree_leaves(x))
        said = (str(error).strip().splitlines() or [""])[0]
        told = f"{type(model).__name__} fails on batch {batch} of the data, inputs {shapes}"
        advice = "run the model on this batch by itself, and mend or leave out the batch"
        raise ValueError(f"{told}: {type(error).__name__}: {said}; {advice}") from error


def named_inputs(
    model: nn.Module,  # Its `forward` names inputs that are given by place
    x: Any,  # A tensor, or several in a tuple or mapping
) -> dict[str, Tensor]:
    """The tensors among the inputs of a model, by name.

    Parameters
    ----------
    model : nn.Module
        Its `forward` names inputs that are given by place
    x : Any
        A tensor, or several in a tuple or mapping

    Returns
    -------
    dict[str, Tensor]
    """
    if isinstance(x, Mapping):
        return {str(name): one for name, one in x.items() if isinstance(one, Tensor)}
    given = list(x) if isinstance(x, tuple | list) else [x]
    try:
        names = list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        names = []
    names += [f"input {place}" for place in range(len(names), len(given))]
    return {name: one for name, one in zip(names, given, strict=False) if isinstance(one, Tensor)}


# Types that the model takes


class Change(NamedTuple):
    """What inputs of a type that the model refuses become.

    Attributes
    ----------
    told : str
        In words
    make : Callable[[Tensor], Tensor]
        Of an input
    """

    told: str  # In words
    make: Callable[[Tensor], Tensor]  # Of an input


def suited(
    model: nn.Module,  # In eval mode
    data: Batches,  # Checked data
) -> tuple[Batches, str]:
    """The data in types that the model takes, and a sentence that says what was changed; '' if nothing was.

    Inputs stay as they are where the model runs on them. Where it does not, floating ones get the model's own type,
    bytes of images become numbers from 0 to 1, and other whole numbers what they say.

    Parameters
    ----------
    model : nn.Module
        In eval mode
    data : Batches
        Checked data

    Returns
    -------
    tuple[Batches, str]

    Raises: `ValueError` for bytes that are neither tokens nor images: only the user knows their scale; for a mask that
    does not fit the tokens beside it, and for sequences of one token that are their own target.
    """
    given = named_inputs(model, data.example)
    _check_mask(model, data, given)
    _check_length(model, data, given)
    own, kinds = floating_type(model), {one.dtype for one in pytree.tree_leaves(data.example)}
    whole = {kind for kind in kinds if not (kind.is_floating_point or kind.is_complex)}
    other = {kind for kind in kinds if kind.is_floating_point and own not in (None, kind)}
    trains = any(module.training for module in model.modules())  # which is told later, and changes what is run
    if trains or not (whole or other) or _runs(model, data.example):
        return data, ""
    changes = _changes(whole, other, own)
    for change in changes:
        if _runs(model, pytree.tree_map(change.make, data.example)):
            if change.told == _UNKNOWN:
                raise ValueError(
                    f"the inputs are {_shapes(data.example)} and {type(model).__name__} takes floating numbers; bytes "
                    "that are no image may be meant as 0 to 255 or as 0 to 1: give x.float(), or x.float() / 255"
                )
            return _changed(data, change)
    return _changed(data, changes[0]) if other else (data, "")  # not a matter of types: tracing tells what it is


def _changed(data: Batches, change: Change) -> tuple[Batches, str]:
    """The data with inputs of other types, and a sentence about it."""
    example = pytree.tree_map(change.make, data.example)
    note = f"The model does not take inputs as they are: {_shapes(data.example)} were made {change.told}."
    kinds = [[one.dtype for one in pytree.tree_leaves(x)] for x in (data.example, example)]
    same = all(a.is_floating_point and torch.promote_types(a, b) == b for a, b in zip(*kinds, strict=True))
    note = "" if same else note  # as halves in float32, each number is what it was
    return replace(data, source=_Changed(data, change), example=example, sums={}), note


_UNKNOWN = "bytes of an unknown scale"


def _changes(whole: set[torch.dtype], other: set[torch.dtype], own: torch.dtype | None) -> list[Change]:
    """What inputs may be made, in the order in which it is tried: floating ones first, whole numbers besides."""
    wide = torch.float32 if own is None else torch.promote_types(own, torch.float32)  # in which bytes are scaled
    own, name = own or torch.float32, str(own or torch.float32)[6:]

    def typed(one: Tensor) -> Tensor:
        return one.to(own) if one.is_floating_point() else one

    def only(wanted: Callable[[Tensor], bool], make: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def made(one: Tensor) -> Tensor:
            return make(one) if not (one.is_floating_point() or one.is_complex()) and wanted(one) else typed(one)

        return made

    also = f", floating ones {name}" if other else ""
    found = [Change(name, typed)] if other else []
    if not whole:
        return found
    found.append(Change(f"int64{also}", only(lambda one: True, Tensor.long)))
    if torch.uint8 in whole:
        image = only(lambda one: one.dtype == torch.uint8 and one.ndim > 2, lambda one: (one.to(wide) / 255).to(own))
        found.append(Change("numbers from 0 to 1, as torchvision's ToTensor does" + also, image))
        found.append(Change(_UNKNOWN, only(lambda one: one.dtype == torch.uint8, lambda one: one.to(own))))
    if whole - {torch.uint8}:
        numbers = only(lambda one: one.dtype != torch.uint8, lambda one: one.to(own))
        found.append(Change("floating numbers of the same value", numbers))
    return found


def _runs(model: nn.Module, x: Any) -> bool:
    """Does the model take these inputs?"""
    try:
        with torch.no_grad():
            _call(model, x)
    except Exception:  # whatever it is, the model does not take them
        return False
    return True


def _call(model: nn.Module, x: Any) -> Any:
    """What the model puts out for inputs of any form."""
    x = pytree.tree_map_only(Tensor, Tensor.clone, to_model(x, model))  # a model may change them in place
    with without_fast_paths(model), torch.random.fork_rng(devices=[]):
        return model(**x) if isinstance(x, Mapping) else model(*(x if isinstance(x, tuple | list) else (x,)))


def told_of_state(
    model: nn.Module,  # In eval mode; returned as it was found
    x: Any,  # Inputs that it takes
) -> str:
    """A sentence on a model that answers otherwise when it is called again with the same inputs; '' if it does not.

    Models that draw at random do so too, and are told otherwise.

    Parameters
    ----------
    model : nn.Module
        In eval mode; returned as it was found
    x : Any
        Inputs that it takes

    Returns
    -------
    str
    """
    try:
        with as_found(model), torch.no_grad():
            first = [one.clone() for one in _floats(_call(model, x))]
            second = _floats(_call(model, x))
    except Exception:  # one that takes whole batches alone, or fails, which tracing tells
        return ""
    if len(first) == len(second) and all(same_numbers(*pair) for pair in zip(first, second, strict=True)):
        return ""
    told = f"{type(model).__name__} keeps something from one call to the next that changes what it says"
    return f"{told}: every batch, with and without lesions, is read from the state in which the model was given."


@dataclass(frozen=True)
class _Changed:
    """Batches with inputs of other types."""

    source: Batches
    change: Change

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return ((pytree.tree_map(self.change.make, x), y) for x, y in self.source)


def _shapes(x: Any) -> str:
    leaves = pytree.tree_leaves(x)
    told = ", ".join(f"{str(one.dtype)[6:]} (n, {', '.join(map(str, one.shape[1:]))})" for one in leaves)
    return told.replace("(n, )", "(n,)")


# Batches padded to different lengths


def evened(
    model: nn.Module,  # In eval mode
    data: Sequence[Any],  # Data of any form that is read batch by batch; None is left as it is
    cause: Exception,  # Why they cannot be taken as they are, raised where they cannot be evened either
) -> tuple[list[Any], str]:
    """Sequences that each batch has padded to a length of its own, padded to one length, and a sentence about it.

    Only with a mask that says which positions count, and only if the model says the same of a batch either way.

    Parameters
    ----------
    model : nn.Module
        In eval mode
    data : Sequence[Any]
        Data of any form that is read batch by batch; None is left as it is
    cause : Exception
        Why they cannot be taken as they are, raised where they cannot be evened either

    Returns
    -------
    tuple[list[Any], str]

    Raises: `cause`; `ValueError` if the model answers otherwise to sequences that are padded further.
    """
    sizes: dict[str, set[tuple[int, ...]]] = {}
    shortest: tuple[int, Any] | None = None
    for item in (item for one in data if one is not None for item in one):
        x = _inputs_of(item)
        given = named_inputs(model, x)
        masks = [name for name, one in given.items() if one.ndim == 2 and _may_tell(name, one, given)]
        if not masks:
            raise cause
        for name, one in given.items():
            sizes.setdefault(name, set()).add(tuple(one.shape[1:]))
        length = given[masks[0]].shape[1]
        shortest = (length, x) if shortest is None or length < shortest[0] else shortest
    names = tuple(name for name, shapes in sizes.items() if len(shapes) > 1)
    lengths = [{shape[:1] for shape in sizes[name]} for name in names]
    if shortest is None or not names or any(one != lengths[0] or len(one) < 2 for one in lengths):
        raise cause
    longest = max(size for (size,) in lengths[0])
    found = [one if one is None else Evened(one, model, names, longest) for one in data]
    _check_same(model, shortest[1], next(one for one in found if one is not None).lengthened(shortest[1]))
    told = f"Sequences of {shortest[0]} to {longest} positions, as the batches have them, were padded to {longest}"
    return found, f"{told}; the model says the same of them."


@dataclass(frozen=True)
class Evened:
    """Batches whose sequences are padded to one length.

    Attributes
    ----------
    source : Any
    model : nn.Module
    names : tuple[str, ...]
        Of the inputs that are sequences
    length : int
        What they become
    """

    source: Any
    model: nn.Module
    names: tuple[str, ...]  # Of the inputs that are sequences
    length: int  # What they become

    @property
    def sampler(self) -> Any:
        """Says whether a loader shuffles."""
        return getattr(self.source, "sampler", None)

    def __iter__(self) -> Iterator[Any]:
        for item in self.source:
            if isinstance(item, Mapping):
                yield self.lengthened(item)
            else:
                yield (self.lengthened(item[0]), *(self._with_targets(one, item[0]) for one in item[1:]))

    def _with_targets(self, y: Any, x: Any) -> Any:
        """Targets at positions, with none for those that are added."""
        lengths = {one.shape[1] for name, one in named_inputs(self.model, x).items() if name in self.names}
        if not isinstance(y, Tensor) or y.ndim < 2 or y.is_floating_point() or {y.shape[1]} != lengths:
            return y
        return _lengthened("labels", y, self.length, None)

    def lengthened(self, x: Any) -> Any:
        """Inputs with padding at the end of their sequences."""
        given, token = named_inputs(self.model, x), _token_of(self.model)
        longer = {name: _lengthened(name, given[name], self.length, token) for name in self.names if name in given}
        if isinstance(x, Mapping):
            return {**x, **longer}
        if isinstance(x, tuple | list):
            by_id = {id(one): name for name, one in given.items()}
            return type(x)(longer.get(by_id.get(id(one), ""), one) for one in x)
        return next(iter(longer.values()), x)


def _inputs_of(item: Any) -> Any:
    """The inputs of a batch as it comes."""
    return item if isinstance(item, Mapping) or not isinstance(item, tuple | list) else item[0]


def _lengthened(name: str, one: Tensor, length: int, token: int | None) -> Tensor:
    """A sequence with what is padding for an input of that name at its end."""
    word, fill = name.lower(), 0.0
    if "mask" in word or word in ("padding", "pad"):
        additive = one.is_floating_point() and bool((one < 0).any())
        fill = torch.finfo(one.dtype).min if additive else float(_by_name(name) == "pads")
    elif not one.is_floating_point() and "type" not in word and "position" not in word:
        fill = -100 if "label" in word else token or 0
    wide = one.new_full((len(one), length, *one.shape[2:]), fill)
    wide[:, : one.shape[1]] = one
    return wide


@torch.no_grad()
def _check_same(model: nn.Module, x: Any, longer: Any) -> None:
    """Does the model say the same of sequences that are padded further?"""
    told = f"batches are padded to different lengths, and {type(model).__name__} answers otherwise to longer padding"
    advice = "pad all sequences to one length, as with padding='max_length'"
    if any(module.training for module in model.modules()):
        return  # which tracing refuses
    try:
        before, after = (_floats(_call(model, _without_targets(one))) for one in (x, longer))
    except Exception as error:
        raise ValueError(f"{told} ({type(error).__name__}: {str(error).splitlines()[:1]}): {advice}") from error
    for one, other in zip(before, after, strict=False):
        if one.ndim != other.ndim:
            continue
        if one.ndim > 1 and one.shape[1] != other.shape[1]:
            continue  # a row for each position: those of padding may be what they like
        size = float(one.abs().nan_to_num(0, 0, 0).max()) if one.numel() else 0.0
        if one.shape != other.shape or not torch.allclose(one, other, rtol=0, atol=1e-4 * size, equal_nan=True):
            raise ValueError(f"{told}: {advice}")


def _without_targets(x: Any) -> Any:
    return {name: one for name, one in x.items() if name not in ("labels", "label")} if isinstance(x, Mapping) else x


def _floats(out: Any) -> list[Tensor]:
    return [one for one in pytree.tree_leaves(out) if isinstance(one, Tensor) and one.is_floating_point()]


# Padding


class Padding(NamedTuple):
    """How the positions that count are told from padding.

    Attributes
    ----------
    model : nn.Module
        Whose inputs
    rules : tuple[Rule, ...]
        Of each length of a sequence, one
    note : str
        How padding was found, a sentence
    """

    model: nn.Module  # Whose inputs
    rules: tuple[Rule, ...]  # Of each length of a sequence, one
    note: str  # How padding was found, a sentence

    def counts(
        self,
        x: Any,  # The inputs of a batch
    ) -> dict[int, Tensor]:  # Length of a sequence -> (n, length) bool, True where a position counts
        """Which positions of a batch count?

        Parameters
        ----------
        x : Any
            The inputs of a batch

        Returns
        -------
        dict[int, Tensor]
            Length of a sequence -> (n, length) bool, True where a position counts
        """
        given = named_inputs(self.model, x)
        return {rule.length: rule.counts(given) for rule in self.rules}


class Rule(NamedTuple):
    """Which positions count, by one of the inputs.

    Attributes
    ----------
    name : str
        Of the input that tells
    length : int
        Positions of a sequence
    kind : {'counts', 'pads', 'additive', 'lengths', 'token'}
        Where it is not 0; where it is 0; where it is not far below 0; how many positions count; which token
        does not
    token : int, default 0
        The pad token
    """

    name: str  # Of the input that tells
    length: int  # Positions of a sequence
    # Where it is not 0; where it is 0; where it is not far below 0; how many positions count; which token does not
    kind: Literal["counts", "pads", "additive", "lengths", "token"]
    token: int = 0  # The pad token

    def counts(self, given: Mapping[str, Tensor]) -> Tensor:
        """(n, length) bool, True where a position counts."""
        one = given[self.name]
        if self.kind == "lengths":
            return torch.arange(self.length, device=one.device) < one[:, None]
        if self.kind == "token":
            return one != self.token
        if self.kind == "additive":
            return one > _FAR
        return one == 0 if self.kind == "pads" else one != 0


_FAR = -1e3  # added to a score of attention, it leaves nothing of it
_OTHER = (
    "token_type",
    "global",
    "head_mask",
    "special_tokens",
    "masked",
    "causal",
    "cross",
    "loss",
    "label",
    "span",
)


def padding_of(
    model: nn.Module,  # In eval mode
    network: Network,  # Traced from it
    data: Batches,  # Checked data
) -> Padding | None:
    """How are padded positions of the data told? None: there are none, or nothing tells.

    A mask is taken by its name, and held to what the model does: what it says to leave out must be what the model
    leaves out, where that can be seen.

    Parameters
    ----------
    model : nn.Module
        In eval mode
    network : Network
        Traced from it
    data : Batches
        Checked data

    Returns
    -------
    Padding | None

    Raises: `ValueError` for examples of which no position counts.
    """
    given = named_inputs(model, data.example)
    told = {name: one for name, one in given.items() if _may_tell(name, one, given)}
    token = None if told else _pad_token(model, given)
    if not told and token is None:
        return None
    rules = _from_masks(model, network, data, told) if told else _from_token(model, data, *token)
    for rule in rules:
        _check_some_count(rule, model, data)
    if not rules:
        return None
    return Padding(model, tuple(rules), " ".join(map(_told, rules)))


_MASK, _TOKENS = "attention_mask", ("input_ids", "inputs_embeds")  # as Hugging Face's models call them


def _check_mask(model: nn.Module, data: Batches, given: Mapping[str, Tensor]) -> None:
    """Is there a 1 or a 0 for each token? A model may spread a mask of another shape over them without a word."""
    mask, tokens = given.get(_MASK), next((name for name in _TOKENS if name in given), None)
    if mask is None or mask.ndim != 2 or tokens is None:
        return
    if mask.shape[1] != given[tokens].shape[1]:
        lengths = mask.shape[1], given[tokens].shape[1]
        told = f"{_MASK!r} has {lengths[0]} positions and {tokens!r} {lengths[1]}"
        raise ValueError(f"{told}: give one number for each token, 1 where it counts and 0 where it is padding")
    for i, (x, _) in enumerate(data):
        own = named_inputs(model, x)[_MASK]
        if own.is_floating_point() and bool(((own > 0) & (own < 1)).any()):
            value = float(own[(own > 0) & (own < 1)][0])
            told = f"{_MASK!r} holds {value:g} in batch {i}"
            raise ValueError(f"{told}: a token counts or it does not; give 1 where it does and 0 where it is padding")


def _check_length(model: nn.Module, data: Batches, given: Mapping[str, Tensor]) -> None:
    """Does a token follow in the sequences, where targets are the tokens themselves?"""
    tokens = given.get("input_ids")
    if tokens is None or tokens.ndim != 2 or tokens.shape[1] != 1 or data.labels.dtype.kind not in "iu":
        return
    own = np.concatenate([named_inputs(model, x)["input_ids"].cpu().numpy() for x, _ in data])
    if own.size == data.labels.size and (own.ravel() == data.labels.ravel()).all():
        told = "the sequences have one token each, and the targets are these tokens, so that none follows another"
        raise ValueError(f"{told}: give sequences of two tokens or more, or targets of another kind")


def _may_tell(name: str, one: Tensor, given: Mapping[str, Tensor]) -> bool:
    """May an input tell padding: a mask (n, length), or lengths (n,), beside another input of that length?"""
    others = [other for key, other in given.items() if key != name]
    word = name.lower()
    if one.ndim == 1:
        whole = not (one.is_floating_point() or one.is_complex() or one.dtype == torch.bool)
        named = "length" in word or word in ("lens", "seq_lens", "x_lens", "input_lens")
        return whole and named and any(other.ndim > 1 for other in others)
    named = ("mask" in word or word in ("padding", "pad")) and not any(part in word for part in _OTHER)
    return named and one.ndim == 2 and any(other.ndim > 1 and other.shape[1] == one.shape[1] for other in others)


def _from_masks(model: nn.Module, network: Network, data: Batches, told: Mapping[str, Tensor]) -> list[Rule]:
    """A rule for each length of a sequence that has padding; the first input that tells it is taken."""
    found: dict[int, Rule] = {}
    for name, one in told.items():
        flat = one.ndim == 1
        rule = _length_rule(name, model, data) if flat else _mask_rule(name, one.shape[1], model, network, data)
        if rule is not None:
            found.setdefault(rule.length, rule)
    return list(found.values())


def _length_rule(name: str, model: nn.Module, data: Batches) -> Rule | None:
    """The lengths of sequences that end in padding."""
    given, most, shortest = named_inputs(model, data.example), 0, np.inf
    for x, _ in data:
        lengths = named_inputs(model, x)[name]
        most, shortest = max(most, int(lengths.max())), min(shortest, int(lengths.min()))
    sizes = {one.shape[1] for key, one in given.items() if key != name and one.ndim > 1}
    sizes = {size for size in sizes if size >= most}
    if shortest < 1 or len(sizes) != 1 or shortest == min(sizes):
        return None
    return Rule(name, sizes.pop(), "lengths")


def _mask_rule(name: str, length: int, model: nn.Module, network: Network, data: Batches) -> Rule | None:
    """What a mask says, if it leaves out anything."""
    values: set[float] = set()
    padded = None  # the first batch in which it leaves out anything
    for x, _ in data:
        one = named_inputs(model, x)[name]
        values |= set(one.unique().tolist())
        if len(values) > 2:
            return None
        padded = x if padded is None and len(one.unique()) > 1 else padded
    if padded is None and len(values) < 2:  # all the same
        return None
    if values <= {0, 1}:
        padded = data.example if padded is None else padded
        kind = _by_name(name)
        other = "pads" if kind == "counts" else "counts"
        seen = {one: _leaves_out(Rule(name, length, one), model, network, padded) for one in (kind, other)}
        return Rule(name, length, other if seen[other] and not seen[kind] else kind)
    return Rule(name, length, "additive") if 0 in values and min(values) < _FAR else None


def _by_name(name: str) -> Literal["counts", "pads"]:
    """What a mask of that name means by custom: PyTorch's key padding masks are True where there is padding."""
    return "pads" if "pad" in name.lower() else "counts"


@torch.no_grad()
def _leaves_out(rule: Rule, model: nn.Module, network: Network, x: Any) -> bool:
    """Does nothing but padding change if the inputs change at the positions that a rule calls padding?"""
    program, counts = network.program, rule.counts(named_inputs(model, x))
    if bool(counts.all()):
        return False
    names = [name for name in program.outputs if program.layouts[name].axis is not None]
    run = program.extract(program.inputs, names)
    try:
        values = [run(*program.arguments(to_model(one, model))) for one in (x, _elsewhere(rule, model, x, ~counts))]
    except Exception:  # then nothing is seen of it
        return False
    told = False
    for name, before, after in zip(names, *values, strict=True):
        before, after = (program.examples_first(name, one).double() for one in (before, after))
        own = places_that_count(before.shape, before.ndim - 1, {rule.length: counts})
        apart = (before - after).abs().movedim(-1, 1).flatten(2) if before.ndim > 2 else (before - after).abs()
        if own is not None:
            apart = apart * own[:, None].to(apart.device)
        told = True
        if float(apart.nan_to_num(0).max()) > 1e-5 * float(before.abs().nan_to_num(0, 0, 0).max()) + 1e-12:
            return False
    return told


def _elsewhere(rule: Rule, model: nn.Module, x: Any, at: Tensor) -> Any:
    """The inputs with other numbers at some positions; the mask itself is left as it is."""
    mask = named_inputs(model, x)[rule.name]

    def changed(one: Tensor) -> Tensor:
        if one is mask or one.ndim < 2 or one.shape[1] != rule.length or one.dtype == torch.bool:
            return one
        other = one + 1 if one.is_floating_point() or one.is_complex() else one.max() + one.min() - one
        return torch.where(at.view(*at.shape, *[1] * (one.ndim - 2)).to(one.device), other, one)

    return pytree.tree_map(changed, x)


def _pad_token(model: nn.Module, given: Mapping[str, Tensor]) -> tuple[str, int] | None:
    """The input that holds tokens, and the model's own pad token."""
    token = _token_of(model)
    whole = [name for name, one in given.items() if one.ndim == 2 and one.dtype in (torch.int64, torch.int32)]
    whole = [name for name in whole if "type" not in name and "position" not in name and "mask" not in name]
    names = [name for name in whole if name == "input_ids"] or whole
    return None if token is None or len(names) != 1 else (names[0], token)


def _token_of(model: nn.Module) -> int | None:
    """The pad token that the configuration of a model names."""
    configs = (getattr(module, "config", None) for module in model.modules())
    tokens = (getattr(config, "pad_token_id", None) for config in configs)
    return next((one for one in tokens if isinstance(one, int) and not isinstance(one, bool)), None)


def _from_token(model: nn.Module, data: Batches, name: str, token: int) -> list[Rule]:
    """A rule by the pad token, if it stands at one end of the rows and nowhere else."""
    left = right = inside = False
    for x, _ in data:
        pads = named_inputs(model, x)[name] == token
        first, last = pads.int().cumprod(1).bool(), pads.int().flip(1).cumprod(1).flip(1).bool()
        left, right = left or bool(first.any()), right or bool(last.any())
        inside = inside or bool((pads & ~first & ~last).any())
    if inside or left == right:
        return []
    return [Rule(name, named_inputs(model, data.example)[name].shape[1], "token", token)]


def _check_some_count(rule: Rule, model: nn.Module, data: Batches) -> None:
    none = [~rule.counts(named_inputs(model, x)).any(1).cpu().numpy() for x, _ in data]
    if (found := np.concatenate(none)).any():
        told = f"by {rule.name!r} no position counts in {which(found, data.places)}"
        raise ValueError(f"{told}: leave these examples out, or mend {rule.name!r}")


def _told(rule: Rule) -> str:
    """How padding was found, a sentence."""
    left = "these positions are left out of means over positions"
    if rule.kind == "token":
        unread = "no mask was given, so the model itself may read them"
        return f"Padding was found by the model's pad token, {rule.token}, in {rule.name!r}: {left}; {unread}."
    how = {"counts": "0 is padding", "pads": "not 0 is padding", "additive": "far below 0 is padding"}
    how["lengths"] = "what lies beyond is padding"
    return f"Padding was found by {rule.name!r} ({how[rule.kind]}): {left}."


def places_that_count(
    shape: Sequence[int],  # Of what a layer puts out, examples along axis 0
    unit_dim: int,  # Axis that counts units
    counts: Mapping[int, Tensor],  # From `Padding.counts`
) -> Tensor | None:  # (n, places) bool, the other axes in one; None if none of them counts positions
    """Which places of a layer's maps are positions that count?

    Parameters
    ----------
    shape : Sequence[int]
        Of what a layer puts out, examples along axis 0
    unit_dim : int
        Axis that counts units
    counts : Mapping[int, Tensor]
        From `Padding.counts`

    Returns
    -------
    Tensor | None
        (n, places) bool, the other axes in one; None if none of them counts positions
    """
    sizes = [size for axis, size in enumerate(shape) if axis not in (0, unit_dim)]
    axis = next((axis for axis, size in enumerate(sizes) if size in counts), None)
    if axis is None or len(counts[sizes[axis]]) != shape[0]:
        return None
    own = counts[sizes[axis]].view(shape[0], *[size if i == axis else 1 for i, size in enumerate(sizes)])
    return own.expand(shape[0], *sizes).flatten(1)
