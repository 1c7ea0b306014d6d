"""What following the units of a traced program finds: layers, and the weights that join them.

A plain module, not a notebook: `wiring` fills it in, and the units notebook makes a `Network` of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from specialize_nb.network.program import Program
from specialize_nb.network.strands import Links, Strand

__all__ = ["Flow", "RawLayer", "RawWire", "Weight"]


@dataclass(eq=False)
class RawLayer:
    """A layer as found: names of its nodes in the program.

    Attributes
    ----------
    name : str
        Dotted name of the module that owns the weight
    op : str
        Its operation, in torch's own word
    unit : str
        What one unit is: 'neuron', 'channel', ...
    n_units : int
        Units; 0 for an input of words
    axis : int
        That counts units in the value of `site` (and of `pre`)
    node : str
        The operation itself
    pre : str
        The last node before the unit's activation
    site : str
        The unit's output after its activation
    scale_in : Tensor | None, default None
        (n_units,) factor of a normalisation between operation and activation
    """

    name: str  # Dotted name of the module that owns the weight
    op: str  # Its operation, in torch's own word
    unit: str  # What one unit is: 'neuron', 'channel', ...
    n_units: int  # Units; 0 for an input of words
    axis: int  # That counts units in the value of `site` (and of `pre`)
    node: str  # The operation itself
    pre: str  # The last node before the unit's activation
    site: str  # The unit's output after its activation
    scale_in: Tensor | None = None  # (n_units,) factor of a normalisation between operation and activation


@dataclass(eq=False)
class RawWire:
    """Weights that join the units of two layers.

    Attributes
    ----------
    source : int
        Index of the layer that feeds; inputs count down from -1
    target : int
        Index of the layer that is fed
    weight : Weight
        Where the numbers lie
    rows : np.ndarray
        (2, n) int64: row of the weight; unit of the target
    columns : Links
        Column of the weight; unit of the source
    scale_in : Tensor | None, default None
        (n_rows,) factor of a normalisation, where the rows are another layer's units
    """

    source: int  # Index of the layer that feeds; inputs count down from -1
    target: int  # Index of the layer that is fed
    weight: Weight  # Where the numbers lie
    rows: np.ndarray  # (2, n) int64: row of the weight; unit of the target
    columns: Links  # Column of the weight; unit of the source
    scale_in: Tensor | None = None  # (n_rows,) factor of a normalisation, where the rows are another layer's units


@dataclass(frozen=True, eq=False)
class Weight:
    """Where a weight lies in the program, and how to read it as rows (to) by columns (from).

    Attributes
    ----------
    node : str
        Fixed node that holds it; '' for the identity
    kind : str
        'linear', 'conv', 'transposed', 'matmul', 'left' (the weight multiplies from the left) or 'identity'
    n_rows : int
        What the weight puts out
    n_columns : int
        What it takes in, all groups together
    """

    node: str  # Fixed node that holds it; '' for the identity
    kind: str  # 'linear', 'conv', 'transposed', 'matmul', 'left' (the weight multiplies from the left) or 'identity'
    n_rows: int  # What the weight puts out
    n_columns: int  # What it takes in, all groups together

    def read(self, program: Program) -> tuple[Tensor, tuple[int, ...], int]:
        """(n_rows, n_columns // groups, n_taps) values, the shape of the taps, and the groups."""
        if self.kind == "identity":
            return torch.eye(self.n_rows).unsqueeze(-1), (), 1
        value = program.constant(self.node)
        if self.kind == "matmul":
            value = value.reshape(value.shape[-2:]).T
        if self.kind == "left":
            value = value.reshape(value.shape[-2:])
        kernel = tuple(value.shape[2:])
        value = value.reshape(*value.shape[:2], -1)
        if self.kind == "transposed":
            groups = self.n_rows // value.shape[1]
            value = value.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        return value, kernel, self.n_columns // value.shape[1]


@dataclass(eq=False)
class Flow:
    """What following the units of one program has found.

    Attributes
    ----------
    layers : list[RawLayer]
        In the order they run
    wires : list[RawWire]
        In the order they were met
    unknown : dict[str, set[int]]
        Operation -> layers it cuts off
    reasons : dict[str, str]
        Operation -> why it could not be followed, if unforeseen
    left_out : dict[str, str]
        Layers that no example has numbers of -> why
    held : dict[str, set[str]]
        Operation -> nodes whose statistic is taken as fixed
    strands : dict[str, tuple[Strand, ...]]
        Node -> the units in its value
    outputs : set[int]
        Layers whose units the model puts out
    inputs : list[RawLayer]
        Floating inputs; their index as a layer is -1 - place
    """

    layers: list[RawLayer] = field(default_factory=list)  # In the order they run
    wires: list[RawWire] = field(default_factory=list)  # In the order they were met
    unknown: dict[str, set[int]] = field(default_factory=dict)  # Operation -> layers it cuts off
    reasons: dict[str, str] = field(default_factory=dict)  # Operation -> why it could not be followed, if unforeseen
    left_out: dict[str, str] = field(default_factory=dict)  # Layers that no example has numbers of -> why
    held: dict[str, set[str]] = field(default_factory=dict)  # Operation -> nodes whose statistic is taken as fixed
    strands: dict[str, tuple[Strand, ...]] = field(default_factory=dict)  # Node -> the units in its value
    outputs: set[int] = field(default_factory=set)  # Layers whose units the model puts out
    inputs: list[RawLayer] = field(default_factory=list)  # Floating inputs; their index as a layer is -1 - place
