"""The kinds of graph an audit can cluster, one row each: how it is built and cut, and what is asked of its clusters.

A plain module, not a notebook: a table. A new kind of graph is a row here and a name in `GraphKindName`; the audit, the
report and the shell read everything else from the row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from specialize_nb.base.devices import short_of
from specialize_nb.clusters.modularity import modularity_partition
from specialize_nb.clusters.partition import Partition
from specialize_nb.clusters.spectral import local_partition, spectral_partition
from specialize_nb.graphs.activations import activation_graph
from specialize_nb.graphs.graph import UnitGraph
from specialize_nb.graphs.similarity import unit_similarity
from specialize_nb.graphs.weights import stored_edges, weight_graph
from specialize_nb.network.refusals import how_to_lift
from specialize_nb.network.subject import Subject

__all__ = ["KINDS", "Cutting", "Depth", "GraphKind", "GraphKindName", "Scope"]

GraphKindName = Literal["weights", "activations", "upstream", "downstream"]
Scope = Literal["global", "local"]  # Clusters that run through layers, or of each layer on its own
Depth = Literal["keep", "remove"]  # As published; or each pair of layers beside what its units' strengths explain


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How a graph is to be cut.

    Attributes
    ----------
    k : int
        Clusters to look for in the whole network
    scopes : Sequence[Scope]
        The whole network, each layer on its own, or both
    depth : Depth, default 'remove'
        Are clusters of the whole network compared with what layers alone explain?
    seed : int, default 0
        Seeds the clustering
    """

    k: int  # Clusters to look for in the whole network
    scopes: Sequence[Scope]  # The whole network, each layer on its own, or both
    depth: Depth = "remove"  # Are clusters of the whole network compared with what layers alone explain?
    seed: int = 0  # Seeds the clustering


@dataclass(frozen=True, kw_only=True)
class GraphKind:
    """One way to join units, and what follows from it.

    Attributes
    ----------
    name : str
        As it is asked for
    label : str
        In words, for people
    scopes : tuple[Scope, ...]
        Those its clusters can have
    build : Callable[[Subject, float | None], UnitGraph]
        From the model, or the data to find with; in so many GB
    cut : Callable[[UnitGraph, Subject, Cutting], dict[Scope, Partition]]
        Into clusters, for each scope
    missing : Callable[[Subject, float | None], str]
        Why it cannot be built in so many GB, as a sentence without its
    coherence : tuple[str, ...]
        Outcomes on real data, the main one first: not what the clusters were cut by
    on_data : bool, default True
        Is the graph built from data? They are then set aside, and judged by others
    by_construction : tuple[str, ...], default ()
        Measures of coherence by which its clusters stand out in untrained networks
    """

    name: str  # As it is asked for
    label: str  # In words, for people
    scopes: tuple[Scope, ...]  # Those its clusters can have
    build: Callable[[Subject, float | None], UnitGraph]  # From the model, or the data to find with; in so many GB
    cut: Callable[[UnitGraph, Subject, Cutting], dict[Scope, Partition]]  # Into clusters, for each scope
    missing: Callable[[Subject, float | None], str]  # Why it cannot be built in so many GB, as a sentence without its
    # end; '' if it can
    coherence: tuple[str, ...]  # Outcomes on real data, the main one first: not what the clusters were cut by
    on_data: bool = True  # Is the graph built from data? They are then set aside, and judged by others
    by_construction: tuple[str, ...] = ()  # Measures of coherence by which its clusters stand out in untrained networks

    @property
    def decisive(self) -> bool:
        """Does any of its outcomes on real data hold its level in networks that have learnt nothing?"""
        return any(name not in self.by_construction for name in self.coherence)


def _by_eigenvectors(graph: UnitGraph, subject: Subject, how: Cutting) -> dict[Scope, Partition]:
    """A local partition has as many clusters in each layer as the global one has there; no cluster is without units."""
    live = int(graph.alive().sum())
    if live < 2:
        raise ValueError(f"the graph joins {live} of its {graph.n_units} units, so there is nothing to cut")
    whole = spectral_partition(graph, min(how.k, live), depth=how.depth, seed=how.seed)
    found: dict[Scope, Partition] = {"global": whole}
    if "local" in how.scopes:
        found["local"] = local_partition(graph, whole, layers=subject.network.hidden, seed=how.seed)
    told = f"The graph of {graph.kind} joins {live} units, so it was cut into {live} clusters and not into {how.k}."
    fewer = (told,) if live < how.k else ()
    return {scope: replace(found[scope], notes=(*found[scope].notes, *fewer)) for scope in how.scopes}


def _by_modularity(graph: UnitGraph, subject: Subject, how: Cutting) -> dict[Scope, Partition]:
    """The number of clusters is found, layer by layer."""
    return {"local": modularity_partition(graph, seed=how.seed)}


def _never(subject: Subject, memory: float | None) -> str:
    return ""


def _no_room(subject: Subject, memory: float | None) -> str:
    """Every unit is joined to every other; a process that takes more memory than there is, is killed without a word."""
    n_units = sum(subject.network.layer(name).n_units for name in subject.network.hidden)
    told = short_of(8 * n_units**2 / 1e9, memory, share=_SHARE)
    return f"edges between all {n_units:,} units need {told}" if told else ""


_SHARE = 0.8  # of the free memory that one graph may take


def _no_wiring(subject: Subject, memory: float | None) -> str:
    if refused := subject.network.refused:
        return f"{refused}. To have them, {how_to_lift(subject.model, ValueError(refused))}"
    n_edges = stored_edges(subject.network)
    told = short_of(_EDGE * n_edges / 1e9, memory, share=_SHARE)
    return f"the weights between {n_edges:,} pairs of units need {told} to be cut" if told else ""


_EDGE = 14  # bytes that an edge takes while clusters are looked for: 10.7 measured, by bench/measure_memory.py


def _no_gradients_by_inputs(subject: Subject, memory: float | None) -> str:
    program = subject.network.program
    if all(program.value(name).is_floating_point() for name in program.inputs):
        return ""
    return f"inputs of {subject.network.model} are not floating numbers, so nothing can be differentiated by them"


def _likeness(
    measure: Literal["input_jacobian", "output_jacobian"], subject: Subject, memory: float | None
) -> UnitGraph:
    return unit_similarity(subject.finding(), None, None, measure=measure, memory=memory)


KINDS: dict[str, GraphKind] = {
    kind.name: kind
    for kind in (
        GraphKind(
            name="weights",
            label="weights",
            scopes=("global", "local"),
            build=lambda subject, memory: weight_graph(subject.network, memory=memory),
            cut=_by_eigenvectors,
            missing=_no_wiring,
            coherence=("correlation", "class_information"),
            on_data=False,
        ),
        GraphKind(
            name="activations",
            label="activations",
            scopes=("global", "local"),
            build=lambda subject, memory: activation_graph(subject.finding(), None, None, memory=memory),
            cut=_by_eigenvectors,
            missing=_no_room,
            coherence=("class_information", "correlation"),
            # the first, and those below, were measured in nbs/studies/pipeline.ipynb
            by_construction=(
                "correlation",
                "position_correlation",
                "next_token_information",
                "token_information",
            ),
        ),
        GraphKind(
            name="upstream",
            label="upstream",
            scopes=("local",),
            build=partial(_likeness, "input_jacobian"),
            cut=_by_modularity,
            missing=_no_gradients_by_inputs,
            coherence=("class_information", "correlation"),
            by_construction=(
                "correlation",
                "position_correlation",
                "next_token_information",
                "token_information",
                "class_information",
                "target_information",
                "visual_score",
                "visual_entropy",
            ),
        ),
        GraphKind(
            name="downstream",
            label="downstream",
            scopes=("local",),
            build=partial(_likeness, "output_jacobian"),
            cut=_by_modularity,
            missing=_never,
            coherence=("correlation", "class_information"),
        ),
    )
}
