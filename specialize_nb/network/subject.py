"""A model, its traced network and its data, joined once: what every analysis passes on instead of the three.

A plain module, not a notebook: mechanism without a story. A public function takes `(model, data, ..., network=None)`,
or a `Subject` in the place of the model and None for the data; its first line makes or takes the subject, and it hands
on nothing else. What is computed from the three is kept here, by name, so that it is computed once however many
analyses ask for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from specialize_nb.base.data import Batches, batches
from specialize_nb.network.hooked import HookedProgram
from specialize_nb.network.units import Network, trace

__all__ = ["Subject", "find_and_confirm"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """What is examined: a model as units, and the data to find with and to confirm on. Made by `Subject.of`.

    Attributes
    ----------
    model : nn.Module
        In eval mode
    network : Network
        Traced from this very model
    data : Batches
        What is judged, is judged on these
    find : Batches
        What is found, is found in these; the same unless they were given
    kept : dict[Hashable, Any]
        What `once` has computed, by name
    """

    model: nn.Module  # In eval mode
    network: Network  # Traced from this very model
    data: Batches  # What is judged, is judged on these
    find: Batches  # What is found, is found in these; the same unless they were given
    kept: dict[Hashable, Any] = field(default_factory=dict, repr=False)  # What `once` has computed, by name

    @classmethod
    def of(
        cls,
        model: nn.Module | Subject,  # In eval mode; returned as it was found. A `Subject` is taken as it is
        data: Any = None,  # Re-iterable of (x, y) batches, a DataLoader, or a pair of tensors; None with a `Subject`
        *,
        network: Network | None = None,  # From `trace(model, ...)`; traced here if None
        find: Any = None,  # Data to find with, of the same forms; None: those to confirm on, or half of them
        split: bool = False,  # Without `find`: every other example of `data` to find with, the rest to confirm on?
        targets: Literal["classes", "any"] = "any",  # What may be predicted: 'classes', or 'any': floating numbers too
    ) -> Subject:
        """Join the three, each checked once.

        Parameters
        ----------
        model : nn.Module | Subject
            In eval mode; returned as it was found. A `Subject` is taken as it is
        data : Any, default None
            Re-iterable of (x, y) batches, a DataLoader, or a pair of tensors; None with a `Subject`
        network : Network | None, default None
            From `trace(model, ...)`; traced here if None
        find : Any, default None
            Data to find with, of the same forms; None: those to confirm on, or half of them
        split : bool, default False
            Without `find`: every other example of `data` to find with, the rest to confirm on?
        targets : {'classes', 'any'}, default 'any'
            What may be predicted: 'classes', or 'any': floating numbers too

        Returns
        -------
        Subject

        Raises: `ValueError` if `network` was traced from another model; what `batches` and `trace` raise.
        """
        if isinstance(model, Subject):
            return _taken(model, data, network, targets)
        confirm = batches(data, targets=targets)
        if find is not None:
            found_in = batches(find, targets=targets)
        else:
            found_in, confirm = find_and_confirm(confirm) if split else (confirm, confirm)
        network = trace(model, confirm.example) if network is None else network
        _check_traced(network, model)
        return cls(model=model, network=network, data=confirm, find=found_in)

    def finding(self) -> Subject:
        """The same model on the data to find with."""
        if self.find is self.data:
            return self
        kept = {"notes": self.once("notes", dict)}  # one list, whatever the data
        make = lambda: Subject(  # noqa: E731
            model=self.model, network=self.network, data=self.find, find=self.find, kept=kept
        )
        return self.once("finding", make)

    def once(
        self,
        name: Hashable,  # What it is kept under
        make: Callable[[], T],  # Computes it
    ) -> T:
        """What `make` gives; computed the first time this name is asked for, and kept.

        Parameters
        ----------
        name : Hashable
            What it is kept under
        make : Callable[[], T]
            Computes it

        Returns
        -------
        T
        """
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def note(
        self,
        sentence: str,  # With a full stop at its end
    ) -> None:
        """Keep what was decided, approximated or left out: every result made from now on says it.

        Parameters
        ----------
        sentence : str
            With a full stop at its end
        """
        self.once("notes", dict)[sentence] = True

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided, approximated or left out so far, a sentence each."""
        return tuple(self.once("notes", dict))


def find_and_confirm(
    data: Batches,  # At least 4 examples
) -> tuple[Batches, Batches]:  # Every other example of each batch, from the second on, and from the first on
    """Which examples find, and which confirm? Each half keeps the order, and is read as often as needed.

    Parameters
    ----------
    data : Batches
        At least 4 examples

    Returns
    -------
    tuple[Batches, Batches]
        Every other example of each batch, from the second on, and from the first on

    Raises: `ValueError` if there are fewer than 4 examples.
    """
    if data.n < 4:
        raise ValueError(f"`data` holds {data.n} examples; half of them find and half confirm: give at least 4")
    return _half(data, 1), _half(data, 0)


def _half(data: Batches, start: int) -> Batches:
    source: Any = _EveryOther(data, start)
    if isinstance(data.source, list):  # in memory already
        source = list(source)
    labels, example = [], None
    for x, y in source:
        example = pytree.tree_map(lambda one: one[:2].clone(), x) if example is None else example
        labels.append(y.cpu().numpy())
    fields = dict(source=source, example=example, n_batches=len(labels))
    return replace(data, labels=np.concatenate(labels), **fields)


@dataclass(frozen=True)
class _EveryOther:
    """Half of the examples of every batch."""

    source: Batches
    start: int  # 0 or 1

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        half = operator.itemgetter(slice(self.start, None, 2))
        return ((pytree.tree_map(half, x), half(y)) for x, y in self.source if len(y) > self.start)


def _taken(subject: Subject, data: Any, network: Network | None, targets: str) -> Subject:
    """A subject that is there already, if it fits what is asked for."""
    if data is not None or network not in (None, subject.network):
        raise ValueError("a `Subject` has its data and its network: leave both out, or give the model instead")
    if targets == "classes" and subject.data.labels.dtype.kind == "f":
        raise ValueError("the labels are floating numbers; expected integer class indices")
    return subject


def _check_traced(network: Network, model: nn.Module) -> None:
    if not isinstance(network, Network):
        raise TypeError(f"`network` is a {type(network).__name__}: give what `trace(model, ...)` returned, or None")
    if not _is_of(network, model):
        told = f"a {network.model}" if network.model != type(model).__name__ else f"another {network.model}"
        raise ValueError(
            f"`network` was traced from {told}, not from the model that was given: its numbers would be that one's. "
            "Give `trace(model, ...)` of this model, or leave `network` out"
        )


def _is_of(network: Network, model: nn.Module) -> bool:
    """Was the network traced from this model? Its program holds the model's own parameters, not copies."""
    if isinstance(network.program, HookedProgram):
        return network.program.model is model
    if network.n_parameters != sum(1 for _ in model.parameters()):
        return False
    own = dict(model.named_parameters(remove_duplicate=False))
    traced = dict(network.program.root.named_parameters())
    if not traced:
        return network.model == type(model).__name__
    return all(own.get(name) is one for name, one in traced.items())
