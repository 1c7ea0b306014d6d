"""A model, its traced network and its data, joined once: what every analysis passes on instead of the three.

A plain module, not a notebook: mechanism without a story. A public function takes `(model, data, ..., network=None)`,
or a `Subject` in the place of the model and None for the data; its first line makes or takes the subject, and it hands
on nothing else. What is computed from the three is kept here, by name, so that it is computed once however many
analyses ask for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import joblib
import numpy as np
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from specialize_nb.base.data import Batches, UnevenBatches, batches, retasked
from specialize_nb.base.devices import to_model
from specialize_nb.base.targets import Task
from specialize_nb.base.tasks import ordered_as, settled
from specialize_nb.network.hooked import HookedProgram
from specialize_nb.network.inputs import Padding, evened, padding_of, suited, told_of_state
from specialize_nb.network.outputs import (
    Outputs,
    Scale,
    ScoresNode,
    check_outputs,
    choose_output,
    dense_layouts,
    read_outputs,
    scale_of,
)
from specialize_nb.network.positions import aimed
from specialize_nb.network.program import Program, says_the_same
from specialize_nb.network.units import Network, trace

__all__ = ["Subject", "find_and_confirm"]

T = TypeVar("T")


class Asked(NamedTuple):
    """What the user says of a model's outputs.

    Attributes
    ----------
    output : str | int | None, default None
        Which of them holds the scores, by its name or place; None: looked for
    scores : Scale | None, default None
        'logits' or 'probabilities'; None: looked at
    class_axis : int | None, default None
        Of scores at positions, which counts classes; None: looked at
    """

    output: str | int | None = None  # Which of them holds the scores, by its name or place; None: looked for
    scores: Scale | None = None  # 'logits' or 'probabilities'; None: looked at
    class_axis: int | None = None  # Of scores at positions, which counts classes; None: looked at


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
    asked : Asked
        What the user says of the outputs
    kept : dict[Hashable, Any]
        What `once` has computed, by name
    """

    model: nn.Module  # In eval mode
    network: Network  # Traced from this very model
    data: Batches  # What is judged, is judged on these
    find: Batches  # What is found, is found in these; the same unless they were given
    asked: Asked = field(default_factory=Asked)  # What the user says of the outputs
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
        task: Task | None = None,  # What the targets are: 'classes', 'dense', 'labels', 'numbers', 'none'; None looks
        output: str | int | None = None,  # Which output holds the scores, by name or place; None: the one that can
        scores: Scale | None = None,  # 'logits', or 'probabilities' that were through a softmax; None looks at them
        class_axis: int | None = None,  # Of scores at positions, which counts classes: 1 or -1; None: the one that can
        residual: Literal["writer", "stream"] = "writer",  # Of `trace`, where no network is given
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
        task : Task | None, default None
            What the targets are: 'classes', 'dense', 'labels', 'numbers', 'none'; None looks
        output : str | int | None, default None
            Which output holds the scores, by name or place; None: the one that can
        scores : Scale | None, default None
            'logits', or 'probabilities' that were through a softmax; None looks at them
        class_axis : int | None, default None
            Of scores at positions, which counts classes: 1 or -1; None: the one that can
        residual : {'writer', 'stream'}, default 'writer'
            Of `trace`, where no network is given

        Returns
        -------
        Subject

        Raises: `ValueError` if `network` was traced from another model; what `batches` and `trace` raise.
        """
        if isinstance(model, Subject):
            return _taken(model, data, network, task, Asked(output, scores, class_axis))
        (confirm, find), evening = _even(model, data, find, task)
        confirm, told = suited(model, confirm)
        if network is None:
            network = _traced(model, confirm, residual)
        else:
            _check_traced(network, model)
            _check_says(network, model, confirm)
        asked = Asked(output, scores, class_axis)
        confirm = _aimed(_of_the_model(model, _settled(network, confirm, asked)), model, network, asked)
        if find is not None:
            found_in, also = suited(model, find)
            found_in, confirm = _alike(_of_the_model(model, found_in), confirm)
            found_in = _aimed(found_in, model, network, asked)
            told = told or also
        else:
            found_in, confirm = find_and_confirm(confirm) if split else (confirm, confirm)
        found = cls(model=model, network=network, data=confirm, find=found_in, asked=asked)
        state = "" if network.program.random else told_of_state(model, confirm.example)
        return found.with_note(evening).with_note(told).with_note(state).with_note(_of_one_kind(confirm))

    def finding(self) -> Subject:
        """The same model on the data to find with."""
        if self.find is self.data:
            return self
        kept = {name: self.once(name, dict) for name in ("notes", "decided")}  # the same, whatever the data
        return self.once("finding", lambda: replace(self, data=self.find, kept=kept))

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

    def threads(
        self,
        n_jobs: int | None,  # As asked for
    ) -> int | None:  # As can be had
        """How many threads may work with the model side by side? One, if they would get in each other's way.

        They would where it is read through hooks, draws at random, is on another device than the CPU, or has weights
        that gradients cannot pass.

        Parameters
        ----------
        n_jobs : int | None
            As asked for

        Returns
        -------
        int | None
            As can be had
        """
        program = self.network.program
        own = [*self.model.parameters(), *self.model.buffers()]
        alone = not program.any_batch or program.random or any(one.is_inference() or not one.is_cpu for one in own)
        only = None if n_jobs is None and joblib.effective_n_jobs(None) == 1 else 1
        return only if alone else n_jobs

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

    def with_note(
        self,
        sentence: str,  # With a full stop at its end; '' for none
    ) -> Subject:
        """The same, with a note kept.

        Parameters
        ----------
        sentence : str
            With a full stop at its end; '' for none

        Returns
        -------
        Subject
        """
        if sentence:
            self.note(sentence)
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided, approximated or left out so far, a sentence each; what network and data say goes first."""
        return tuple(dict.fromkeys([*self.network.notes, *self.data.notes, *self.once("notes", dict)]))

    @property
    def task(self) -> Task:
        """What is to be predicted."""
        return self.data.task

    @property
    def scores_node(self) -> ScoresNode:
        """The output that holds the scores. Raises: `ValueError` if it cannot be told; `output=` says it."""

        def make() -> ScoresNode:
            found = _scores_node(self.network, self.data, self.asked)
            self.with_note(found.note)
            if self.data.others:
                settled(self.data, found.n)  # which raises: `of` would have settled it
            return found

        return self.once("scores node", make)

    @property
    def output(self) -> str:
        """The name of that output; '' if it is alone."""
        return self.scores_node.label

    @property
    def outputs(self) -> Outputs:
        """What the intact model says of all data, read once. Raises: `ValueError` for examples with NaN or infinity."""

        def make() -> Outputs:
            chosen = self.scores_node
            found = read_outputs(self.model, self.network, self.data, chosen.node, chosen.dense)
            check_outputs(found, self.network.model, self.task, self.data.places)
            return found

        return self.once("outputs", make)

    def checked(self) -> Subject:
        """The same, once the outputs are known to be numbers. Raises: `ValueError` as `outputs`."""
        self.once("checked", lambda: self.outputs)
        return self

    @property
    def scores(self) -> Scale:
        """What the scores are: 'logits' or 'probabilities'. Warns: `UserWarning` if they are found to be the latter."""
        decided = self.once("decided", dict)
        if "scores" not in decided:
            node, said = self.scores_node.node, self.asked.scores
            decided["scores"], notes = scale_of(self.outputs, self.network, node, self.task, said)
            for told in notes:
                self.note(told)
        return decided["scores"]

    @property
    def padding(self) -> Padding | None:
        """How positions that count are told from padding; None if none is found."""

        def make() -> Padding | None:
            found = padding_of(self.model, self.network, self.data)
            self.with_note("" if found is None else found.note)
            return found

        return self.once("padding", make)

    def counts(
        self,
        x: Any,  # The inputs of a batch
    ) -> dict[int, Tensor]:
        """Length of a sequence -> (n, length) bool, True where a position counts; empty if there is no padding.

        Parameters
        ----------
        x : Any
            The inputs of a batch

        Returns
        -------
        dict[int, Tensor]
        """
        return {} if self.padding is None else self.padding.counts(x)


def _even(model: nn.Module, data: Any, find: Any, task: Task | None) -> tuple[list[Any], str]:
    """Both data as `Batches`, or with sequences padded to one length if batches have them at different lengths."""
    try:
        checked, told = [batches(data, task=task), None if find is None else _to_find_with(find, task)], ""
        shapes = [_shapes(one) for one in checked if one is not None]
        if shapes[0] != shapes[-1]:
            raise UnevenBatches(f"`find` has inputs of shape {shapes[-1]}, and `data` of {shapes[0]}")
    except UnevenBatches as error:
        even, told = evened(model, [data, find], error)
        checked = [batches(even[0], task=task), None if find is None else _to_find_with(even[1], task)]
    return checked, told


def _to_find_with(find: Any, task: Task | None) -> Batches:
    """Data to find with, which may be without targets, whatever the task."""
    if task is None:
        return batches(find)
    bare = batches(find, task="none")
    return batches(find, task=task) if bare.has_targets else bare


def _shapes(data: Batches) -> list[tuple[int, ...]]:
    """The shape of one example of each input."""
    return [tuple(one.shape[1:]) for one in pytree.tree_leaves(data.example)]


def _width(data: Batches) -> int | None:
    """How many numbers an example the targets need."""
    if data.task == "none":
        return None
    return int(data.labels.max()) + 1 if data.task == "classes" else data.labels[0].size


def _scores_node(network: Network, data: Batches, asked: Asked) -> ScoresNode:
    """The output that holds the scores of such data."""
    options: dict[str, Any] = dict(task=data.task, output=asked.output, class_axis=asked.class_axis)
    if data.task == "dense":
        return choose_output(network, positions=data.labels.shape[1:], **options)
    return choose_output(network, width=_width(data), **options)


def _aimed(data: Batches, model: nn.Module, network: Network, asked: Asked) -> Batches:
    """Targets at positions, at those that count; as they are where no output fits them, which is told later."""
    if data.task != "dense":
        return data
    try:
        scores = _scores_node(network, data, asked)
    except ValueError:
        return data
    return aimed(model, network, data, scores)


def _settled(network: Network, data: Batches, asked: Asked) -> Batches:
    """The data with the task that fits the model's outputs, where the targets leave it open and one fits."""
    if "dense" in (data.task, *data.others):
        nodes, positions = network.program.outputs, data.labels.shape[1:]
        fits = any(dense_layouts(network, node, positions) for node in nodes)
        others = [one for one in (data.task, *data.others) if one != "dense"]
        return retasked(data, "dense" if fits or not others else others[0])
    try:
        n_scores = choose_output(network, task="none", output=asked.output).n if data.others else 0
        return settled(data, n_scores)
    except ValueError:  # told when the scores are asked for: not everything needs them
        return data


def _of_the_model(model: nn.Module, data: Batches) -> Batches:
    """Classes that words name in the model's order, if its configuration knows them."""
    config = getattr(model, "config", None)
    known = dict(getattr(config, "label2id", None) or {})
    known |= {name: i for i, name in (getattr(config, "id2label", None) or {}).items()}
    if not set(data.names) & set(known) or data.task != "classes":
        return data
    told = "The targets are words; their classes are in the order that the model's configuration gives."
    return ordered_as(data, sorted(known, key=known.__getitem__), told)


def _alike(find: Batches, confirm: Batches) -> tuple[Batches, Batches]:
    """Both data with the same task and classes; those to find with may be without targets."""
    if "none" in (find.task, confirm.task):
        return (find if find.task == "none" else retasked(find, "none")), confirm
    find = find if find.task == confirm.task else retasked(find, confirm.task)
    if bool(find.names) != bool(confirm.names):
        words, numbers = ("`find`", "`data`") if find.names else ("`data`", "`find`")
        told = f"the targets of {words} are words and those of {numbers} are numbers"
        raise ValueError(f"{told}: which is which cannot be told; give both as words, or both as numbers from 0 on")
    if find.names == confirm.names:
        return find, confirm
    if set(find.names) <= set(confirm.names):
        return ordered_as(find, confirm.names, "The classes of `find` are numbered as those of `data` are."), confirm
    names = tuple(sorted({*confirm.names, *find.names}))
    told = f"`data` and `find` name different classes: the {len(names)} words of both, in alphabetical order, are taken"
    return ordered_as(find, names, f"{told}."), ordered_as(confirm, names, f"{told}.")


def _of_one_kind(data: Batches) -> str:
    """What is said of targets that tell no examples apart, a sentence; '' if they do."""
    if data.task == "none" or data.n < 2 or (data.labels != data.labels[:1]).any():
        return ""
    if data.task == "classes":
        named = repr(data.names[data.labels[0]]) if data.names else str(data.labels[0])
        told = f"All examples are of class {named}"
    else:
        told = f"All examples have the same {'labels' if data.task == 'labels' else 'target'}"
    nothing = "what is measured by comparing them (selectivity, information about targets) is 0 or undefined"
    return f"{told}: {nothing}, whatever the network does."


def _traced(model: nn.Module, data: Batches, residual: Literal["writer", "stream"]) -> Network:
    """The network of a model, from two examples; from a whole batch, if its code wants that."""
    x, y = next(iter(data))
    try:
        network = trace(model, data.example, residual=residual)
    except ValueError:
        if len(y) < 3:
            raise
        return trace(model, x, residual=residual)
    return network if _says_the_same(network, model, x) else trace(model, x, residual=residual)


def _check_says(network: Network, model: nn.Module, data: Batches) -> None:
    x, _ = next(iter(data))
    if isinstance(network.program, Program):
        network.program.take_buffers(model)
    if not _says_the_same(network, model, x):
        told = f"`network` says something else of the first batch than {network.model} does"
        why = "its code looks at the size of the batch, keeps a state, or draws"
        raise ValueError(f"{told}: {why}; trace it with that batch as the example, or leave `network` out")


def _says_the_same(network: Network, model: nn.Module, x: Any) -> bool:
    """Does a network say of a batch what its model does? One that is read through hooks does."""
    if isinstance(network.program, HookedProgram):
        return True
    given = to_model(x, model)
    if isinstance(given, Mapping):
        return says_the_same(network.program, model, (), dict(given))
    return says_the_same(network.program, model, tuple(given) if isinstance(given, tuple | list) else (given,))


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
    if data.n == len(data):  # batches of one example: every other batch
        return _half(data, 1, single=True), _half(data, 0, single=True)
    return _half(data, 1), _half(data, 0)


def _half(data: Batches, start: int, *, single: bool = False) -> Batches:
    half, in_memory = _Half(data, start, single), isinstance(data.source, list)
    kept, labels, places, example = [], [], [], None
    for x, y, own in half.placed():
        example = pytree.tree_map(lambda one: one[:2].clone(), x) if example is None else example
        labels.append(y.cpu().numpy())
        places.append(own if data.places is None else data.places[own])
        kept += [(x, y)] if in_memory else []
    fields = dict(source=kept or half, example=example, n_batches=len(labels), sums={}, places=np.concatenate(places))
    return replace(data, labels=np.concatenate(labels), **fields)


@dataclass(frozen=True)
class _Half:
    """Half of the examples of every batch, or half of the batches, where each holds one example."""

    source: Batches
    start: int  # 0 or 1
    single: bool  # Half of the batches?

    def placed(self) -> Iterator[tuple[Any, Tensor, np.ndarray]]:
        """Inputs, targets, and where they stand in the source."""
        first = 0
        for i, (x, y) in enumerate(self.source):
            rows = slice(0 if i % 2 == self.start else len(y), None) if self.single else slice(self.start, None, 2)
            own = np.arange(first, first + len(y))[rows]
            first += len(y)
            if len(own):
                yield pytree.tree_map(operator.itemgetter(rows), x), y[rows], own

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return ((x, y) for x, y, _ in self.placed())


def _taken(subject: Subject, data: Any, network: Network | None, task: Task | None, asked: Asked) -> Subject:
    """A subject that is there already, if it fits what is asked for."""
    if data is not None or network not in (None, subject.network):
        raise ValueError("a `Subject` has its data and its network: leave both out, or give the model instead")
    if task not in (None, subject.data.task):
        told = f"a `Subject` has its task, {subject.data.task!r}"
        raise ValueError(f"{told}: leave `task` out, or give the model instead")
    for name, said in asked._asdict().items():
        if said not in (None, getattr(subject.asked, name)):
            told = f"a `Subject` was made with {name}={getattr(subject.asked, name)!r}"
            raise ValueError(f"{told}: leave `{name}` out, or give it where the subject is made")
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
