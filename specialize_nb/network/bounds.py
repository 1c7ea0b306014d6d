"""Between which numbers an output lies by the operations that make it, whatever the inputs are.

A plain module, not a notebook: mechanism without a story. A sigmoid, a softmax, or positive numbers divided by their
sum cannot leave 0 to 1; a sum can, even if it never does in some data. So it is told whether scores are probabilities
by what makes them, not by how they happen to lie.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx
from torch.utils import _pytree as pytree

from specialize_nb.network.operations import op_name
from specialize_nb.network.units import Network

__all__ = ["Bounds", "bounds_of", "is_logarithm", "last_operation"]


class Bounds(NamedTuple):
    """Between which numbers a value lies, whatever the inputs are.

    Attributes
    ----------
    low : float
    high : float
    """

    low: float
    high: float

    def within(self, low: float, high: float) -> bool:
        """Do they lie between two others?"""
        return low <= self.low and self.high <= high


_ANY, _DEEP = Bounds(-math.inf, math.inf), 40  # operations that are looked back
_HELD = {  # whatever is given
    **dict.fromkeys("sigmoid special_expit hardsigmoid softmax _softmax softmin".split(), Bounds(0, 1)),
    **dict.fromkeys("tanh erf special_erf sin cos softsign".split(), Bounds(-1, 1)),
    **dict.fromkeys("log_sigmoid log_sigmoid_forward log_softmax _log_softmax".split(), Bounds(-math.inf, 0)),
    **dict.fromkeys("eq ne lt le gt ge logical_not logical_and logical_or isfinite".split(), Bounds(0, 1)),
    "relu6": Bounds(0, 6),
}
_SAME = set(  # no number is above or below all that are given
    "view reshape _unsafe_view squeeze unsqueeze flatten unflatten permute transpose t clone select slice narrow to "
    "_to_copy contiguous alias detach expand expand_as dropout getitem mean amax amin max min median cat concat stack "
    "where maximum minimum chunk split split_with_sizes unbind index_select gather lerp float double half type_as flip "
    "repeat movedim adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d".split()
)
_FIRST = _SAME - set("cat concat stack where maximum minimum lerp".split())  # one value and its layout


def bounds_of(
    network: Network,  # Whose
    node: str,  # Of its program
) -> Bounds:
    """Between which numbers does a value lie by the operations that make it? Any, if they are not known.

    Parameters
    ----------
    network : Network
        Whose
    node : str
        Of its program

    Returns
    -------
    Bounds
    """
    nodes: dict[str, fx.Node] = getattr(network.program, "nodes", {})
    return _bounds(nodes[node], _DEEP, {}) if node in nodes else _ANY


def _bounds(one: Any, deep: int, known: dict[fx.Node, Bounds]) -> Bounds:
    if isinstance(one, int | float):
        return Bounds(float(one), float(one))
    if not isinstance(one, fx.Node) or one.op != "call_function" or not deep:
        return _ANY
    if one not in known:
        found = _made(one, lambda arg: _bounds(arg, deep - 1, known))
        known[one] = _ANY if math.isnan(found.low) or math.isnan(found.high) else found
    return known[one]


def _made(node: fx.Node, of: Callable[[Any], Bounds]) -> Bounds:
    """Between which numbers a value lies, from those that it is made of."""
    op, args = _name(node), node.args
    if op in _HELD:
        return _HELD[op]
    if op in _SAME:
        given = args[:1] if op in _FIRST else args[1:3] if op == "where" else args
        parts = [of(one) for one in pytree.tree_leaves(given) if isinstance(one, fx.Node | int | float)]
        parts = parts if op not in ("cat", "concat", "stack") else [of(one) for one in pytree.tree_leaves(args[0])]
        if op == "lerp" and not of(args[2]).within(0, 1):
            return _ANY
        return Bounds(min(one.low for one in parts), max(one.high for one in parts)) if parts else _ANY
    if op in ("clamp", "clip", "hardtanh", "clamp_min", "clamp_max"):
        return _clamped(node, op, of(args[0]))
    if op in ("add", "sub", "rsub", "mul", "div", "true_divide"):
        return _combined(node, op, of(args[0]), of(args[1]))
    rule = _RISING.get(op)
    return _ANY if rule is None else rule(of(args[0]))


def _name(node: fx.Node) -> str:
    name = op_name(node)
    return name if name.startswith("_") else name.removesuffix("_")


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


_RISING: dict[str, Callable[[Bounds], Bounds]] = {
    "relu": lambda x: Bounds(max(x.low, 0.0), max(x.high, 0.0)),
    "neg": lambda x: Bounds(-x.high, -x.low),
    "exp": lambda x: Bounds(_exp(x.low), _exp(x.high)),
    "log": lambda x: Bounds(math.log(x.low) if x.low > 0 else -math.inf, math.log(x.high) if x.high > 0 else math.inf),
    "softplus": lambda x: Bounds(0.0, math.inf),
    "abs": lambda x: Bounds(0.0, max(abs(x.low), abs(x.high))),
    "square": lambda x: Bounds(0.0, max(abs(x.low), abs(x.high)) ** 2),
    "sum": lambda x: Bounds(0.0 if x.low >= 0 else -math.inf, 0.0 if x.high <= 0 else math.inf),
}


def _clamped(node: fx.Node, op: str, x: Bounds) -> Bounds:
    """What is left between two ends."""
    ends = [*node.args[1:3], *[None] * 2][:2] if op != "clamp_max" else [None, node.args[1]]
    low, high = (node.kwargs.get(key, end) for key, end in zip(("min", "max"), ends, strict=True))
    if op == "hardtanh":
        low, high = node.kwargs.get("min_val", ends[0]), node.kwargs.get("max_val", ends[1])
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    low, high = (one if isinstance(one, int | float) else end for one, end in ((low, -math.inf), (high, math.inf)))
    return Bounds(min(max(x.low, low), high), min(max(x.high, low), high))


def _combined(node: fx.Node, op: str, a: Bounds, b: Bounds) -> Bounds:
    """A sum, a difference, a product or a quotient."""
    if op in ("add", "sub", "rsub"):
        scale = node.kwargs.get("alpha", 1)
        if scale != 1 or len(node.args) > 2:
            return _ANY
        a, b = (b, a) if op == "rsub" else (a, b)
        return Bounds(a.low + b.low, a.high + b.high) if op == "add" else Bounds(a.low - b.high, a.high - b.low)
    if op == "mul":
        ends = [x * y if x and y else 0.0 for x in a for y in b]
        return Bounds(min(ends), max(ends))
    if a.low >= 0 and _is_own_sum(node.args[0], node.args[1]):
        return Bounds(0.0, 1.0)
    ends = [x / y for x in a for y in b] if b.low > 0 and math.isfinite(b.high) else [-math.inf, math.inf]
    return Bounds(min(ends), max(ends))


def _is_own_sum(part: Any, whole: Any) -> bool:
    """Is a value divided by its own sum, or by a little more?"""
    while isinstance(whole, fx.Node) and _name(whole) in (*_LAID_OUT, "add", "clamp", "clamp_min", "maximum"):
        if _name(whole) == "add":
            numbers = [one for one in whole.args[:2] if isinstance(one, int | float)]
            others = [one for one in whole.args[:2] if isinstance(one, fx.Node)]
            if len(numbers) != 1 or numbers[0] < 0 or whole.kwargs:
                return False
            if _are_alike(_laid(others[0]), _laid(part)):
                return True
            whole = others[0]
        else:
            whole = whole.args[0]
    if not isinstance(whole, fx.Node) or _name(whole) not in ("sum", "linalg_vector_norm", "norm"):
        return False
    if _name(whole) != "sum" and whole.args[1:2] not in ((1,), (1.0,)):
        return False
    return _are_alike(_laid(whole.args[0]), _laid(part))


def _are_alike(one: Any, other: Any, deep: int = 10) -> bool:
    """Are two values computed in the same way from the same?"""
    if one is other:
        return True
    if not (isinstance(one, fx.Node) and isinstance(other, fx.Node)):
        return type(one) is type(other) and not isinstance(one, fx.Node) and one == other
    if one.op != "call_function" or one.target is not other.target or one.kwargs != other.kwargs or not deep:
        return False
    pairs = [pytree.tree_leaves(node.args) for node in (one, other)]
    return len(pairs[0]) == len(pairs[1]) and all(_are_alike(a, b, deep - 1) for a, b in zip(*pairs, strict=True))


_LAID_OUT = ("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "flatten", "permute", "transpose", "t", "clone")
_LAID_OUT += ("select", "slice", "_to_copy", "to", "contiguous", "alias", "detach", "expand", "dropout", "expand_as")


def _laid(node: Any) -> Any:
    """What made the numbers of a node; what lays them out anew is passed over."""
    while isinstance(node, fx.Node) and (_name(node) in _LAID_OUT or node.target is operator.getitem):
        if not node.all_input_nodes:
            return node
        node = node.all_input_nodes[0]
    return node


def last_operation(
    network: Network,  # Whose
    node: str,  # Of its program
) -> fx.Node | None:
    """Which operation makes the numbers of a value? None, if it is not known; a new layout is passed over.

    Parameters
    ----------
    network : Network
        Whose
    node : str
        Of its program

    Returns
    -------
    fx.Node | None
    """
    return _laid(getattr(network.program, "nodes", {}).get(node))


def is_logarithm(
    last: fx.Node,  # From `last_operation`
) -> bool:
    """Is what it makes the logarithm of a probability?

    Parameters
    ----------
    last : fx.Node
        From `last_operation`

    Returns
    -------
    bool
    """
    op = _name(last)
    if op in ("log_sigmoid", "log_sigmoid_forward", "log_softmax", "_log_softmax"):
        return True
    if op == "neg":
        return isinstance(_laid(last.args[0]), fx.Node) and _name(_laid(last.args[0])) == "softplus"
    return op == "log" and _bounds(last.args[0], _DEEP, {}).within(0, 1)
