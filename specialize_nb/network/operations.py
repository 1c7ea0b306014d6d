"""What is known of the operations of a traced program: which move numbers, keep them, mix them, or carry weights.

A plain module, not a notebook: one place for every table of operations, and for what a node tells of itself. An
operation that is new to torch is written into the tables that it belongs to, here and nowhere else. If none of the
tables of the first part has it, and torch itself does not mark it as pointwise, it is unknown to `wiring`, and is
reported.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

# First part: what becomes of the numbers, for those who follow units.
# Numbers are moved about, none is changed.
MOVES = set(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze transpose permute t numpy_T mT slice select narrow "
    "chunk split split_with_sizes tensor_split unsafe_split unsafe_chunk unbind expand expand_as repeat tile "
    "contiguous clone roll flip rot90 pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle alias "
    "detach movedim moveaxis swapaxes swapdims repeat_interleave cat concat concatenate stack hstack vstack "
    "constant_pad_nd pad slice_scatter select_scatter diagonal unfold lift_fresh_copy reflection_pad1d "
    "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d view_as reshape_as".split()
)
# No number of the input comes through, only its shape.
CONSTANTS = set(
    "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty sym_size "
    "sym_size.int size numel zeros ones full arange empty".split()
)
# Number by number, and not marked as such by torch.
KEEPS = set(
    "dropout dropout_ feature_dropout alpha_dropout native_dropout to _to_copy type_as identity hardswish hardsigmoid "
    "hardtanh relu relu6 elu selu celu gelu silu mish leaky_relu softplus prelu clamp clip rrelu softsign tanhshrink "
    "hardshrink softshrink logit log1p expm1 float double half triu tril nan_to_num where masked_fill square "
    "fake_quantize_per_tensor_affine rsub mul add sub div true_divide maximum minimum pow threshold log_sigmoid "
    "_prelu_kernel lerp addcmul addcdiv eq ne lt le gt ge isnan isinf isfinite logical_not logical_and logical_or "
    "logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor".split()
)
# Neighbours along the last axes are mixed; how many axes.
SPATIAL = {
    f"{kind}{n}d": n
    for n in (1, 2, 3)
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "_adaptive_avg_pool", "lp_pool")
} | {"max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "max_pool1d_with_indices": 1}
SAMPLES = {  # resized along all axes but the first two
    f"{kind}{n}d"
    for n in (1, 2, 3)
    for kind in ("upsample_nearest", "_upsample_nearest_exact", "upsample_linear", "upsample_bilinear")
} | {"upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample"}
# All numbers along some axes are mixed into one.
REDUCES = set(
    "mean sum amax amin max min var std norm linalg_vector_norm logsumexp prod var_mean std_mean median nansum argmax "
    "argmin any all".split()
)
# Numbers along one axis are mixed, and the axis stays.
ALONG = {"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "softmin"}
# Moves that keep every number.
RELAYS = set("view reshape _unsafe_view flatten unflatten squeeze unsqueeze transpose permute movedim".split())
# What may lie between an operation and its activation.
PASSES = set("dropout feature_dropout contiguous clone to _to_copy alias detach getitem".split())
NORMS = {"batch_norm", "_native_batch_norm_legit_no_training", "layer_norm", "group_norm", "rms_norm", "instance_norm"}

# Second part: what they do with memory, for those who cut, fuse and rewrite a program.
# May hand back their input, or a view of it, without saying so in their schema.
MAY_ALIAS = set(
    "reshape flatten contiguous dropout to type_as expand_as view_as feature_dropout einsum alpha_dropout "
    "feature_alpha_dropout atleast_1d atleast_2d atleast_3d conj_physical tile".split()
)
# A whole sequence, or a step of it, in one operation.
RECURRENT = {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "lstm", "gru", "rnn_tanh", "rnn_relu"}
# One weight and one bias, at the second and third place: dense layers and convolutions.
WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d"}
# Made of other operations, and yet a value of their own: others so made may hand back a view of what they are given.
NEW_VALUES = WEIGHTED | {"batch_norm", "layer_norm", "group_norm", "matmul"}

# Third part: which kind of function they are, for those who differentiate or rescale.
# Straight lines in everything they are given.
STRAIGHT = (
    MOVES
    | PASSES
    | set("add sub rsub neg mean sum avg_pool1d avg_pool2d avg_pool3d".split())
    | {f"{kind}adaptive_avg_pool{n}d" for kind in ("", "_") for n in (1, 2, 3)}
)
# Straight lines in each factor, the others held.
PRODUCTS = WEIGHTED | set("mul div matmul mm bmm addmm batch_norm".split())
# Straight lines in pieces.
KINKED = set(
    "relu relu6 leaky_relu prelu _prelu_kernel hardtanh clamp clamp_min clamp_max threshold abs maximum minimum amax "
    "amin max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_max_pool2d dropout".split()
)
# Smooth, and known to forward differentiation.
SMOOTH = set(
    "gelu tanh sigmoid silu elu celu selu softplus mish exp log sqrt rsqrt pow square softmax layer_norm".split()
)
# Twice the input gives twice the output.
HOMOGENEOUS = set(
    "relu relu_ leaky_relu leaky_relu_ prelu abs dropout dropout_ feature_dropout identity max_pool1d max_pool2d "
    "max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d flatten view reshape _unsafe_view contiguous clone alias".split()
)


def op_name(
    node: fx.Node,  # Of a traced program
) -> str:
    """The name of a node's operation, as the tables have it.

    Parameters
    ----------
    node : fx.Node
        Of a traced program

    Returns
    -------
    str
    """
    if node.op != "call_function":
        return node.op
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))


def argument(
    node: fx.Node,  # A call
    key: str,  # The argument's name
    place: int,  # Its place, from 0
    default: Any = None,  # What it is if it was not given
) -> Any:
    """An argument of a node, given by place or by name.

    Parameters
    ----------
    node : fx.Node
        A call
    key : str
        The argument's name
    place : int
        Its place, from 0
    default : Any, default None
        What it is if it was not given

    Returns
    -------
    Any
    """
    return node.args[place] if len(node.args) > place else node.kwargs.get(key, default)


def is_tensor(
    node: fx.Node,  # Of a traced program
) -> bool:
    """True if a node puts out a tensor, or several values of which one is.

    Parameters
    ----------
    node : fx.Node
        Of a traced program

    Returns
    -------
    bool
    """
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value))


def shape_of(
    node: fx.Node,  # That puts out a tensor
) -> tuple[int, ...]:
    """The shape of a node's value (the first, if there are several) for a batch of one.

    Parameters
    ----------
    node : fx.Node
        That puts out a tensor

    Returns
    -------
    tuple[int, ...]
    """
    value = node.meta["val"]
    return shape_at(value[0] if isinstance(value, tuple | list) else value, 1)


def size_at(
    value: Any,  # A size, free or not
    batch: int,  # Examples, at least 1
) -> Any:
    """A size for a batch of `batch` examples.

    Parameters
    ----------
    value : Any
        A size, free or not
    batch : int
        Examples, at least 1

    Returns
    -------
    Any
    """
    if isinstance(value, torch.SymInt):
        return _evaluated(value.node.expr, batch)
    return value


@lru_cache(maxsize=4096)  # a network has few different sizes, and each is asked for thousands of times
def _evaluated(expression: Any, batch: int) -> int:
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


@dataclass(frozen=True)
class SizeRule:
    """A size as it follows from the number of examples; it can be sent to other processes.

    Attributes
    ----------
    expression : Any
        Of SymPy, or a plain number
    """

    expression: Any  # Of SymPy, or a plain number

    def __call__(
        self,
        batch: int,  # Examples, at least 1
    ) -> int:
        """The size for a batch of `batch` examples."""
        symbols = getattr(self.expression, "free_symbols", ())
        return int(self.expression.subs(dict.fromkeys(symbols, batch))) if symbols else int(self.expression)


def size_rule(
    node: fx.Node,  # That puts out a size
) -> SizeRule:
    """How a size follows from the number of examples.

    Parameters
    ----------
    node : fx.Node
        That puts out a size

    Returns
    -------
    SizeRule
    """
    value = node.meta["val"]
    return SizeRule(value.node.expr if isinstance(value, torch.SymInt) else value)


def shape_at(
    value: Tensor,  # As a traced program knows it, without numbers
    batch: int,  # Examples, at least 1
) -> tuple[int, ...]:
    """The shape of a value for a batch of `batch` examples.

    Parameters
    ----------
    value : Tensor
        As a traced program knows it, without numbers
    batch : int
        Examples, at least 1

    Returns
    -------
    tuple[int, ...]
    """
    return tuple(size_at(size, batch) for size in value.shape)


def is_free(
    size: int | torch.SymInt,  # Of one axis
) -> bool:
    """True if a size varies with the batch; a symbol that the model's code has pinned to a number does not.

    Parameters
    ----------
    size : int | torch.SymInt
        Of one axis

    Returns
    -------
    bool
    """
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


def is_multiple(
    size: int | torch.SymInt,  # Of one axis
    each: int,  # Places for one example
) -> bool:
    """True if a size is so many places for every example, and no more.

    Parameters
    ----------
    size : int | torch.SymInt
        Of one axis
    each : int
        Places for one example

    Returns
    -------
    bool
    """
    return all(size_at(size, batch) == batch * each for batch in (2, 3, 5))


def rows_told(
    value: Tensor,  # As a traced program knows it, without numbers
) -> str:
    """Why a value has no place for each example, in words that go on from 'it'; '' if it has.

    Parameters
    ----------
    value : Tensor
        As a traced program knows it, without numbers

    Returns
    -------
    str
    """
    free = [size for size in value.shape if is_free(size)]
    if any(free_unbacked_symbols(size) for size in free):
        return "runs on rows that are chosen by their values"
    if not free:
        return "mixes the examples of a batch into a fixed number of rows"
    each = size_at(free[0], 1)
    as_many = len(free) == 1 and each > 0 and is_multiple(free[0], each)
    return "" if as_many else "does not have as many rows for every example"


def spelled_out(
    equation: str,  # Of an einsum, without spaces
    ranks: Sequence[int],  # Axes of each operand
) -> tuple[list[str], str]:
    """A letter for each axis of the operands and of the result of an einsum, whatever it leaves to be understood.

    Parameters
    ----------
    equation : str
        Of an einsum, without spaces
    ranks : Sequence[int]
        Axes of each operand

    Returns
    -------
    tuple[list[str], str]
    """
    left, arrow, out = equation.partition("->")
    labels = left.split(",")
    spare = [one for one in string.ascii_letters if one not in equation]
    n_free = [rank - len(label.replace("...", "")) for rank, label in zip(ranks, labels, strict=True)]
    free = "".join(spare[: max(n_free)])
    if not arrow:
        out = "..." * ("..." in left) + "".join(sorted(one for one in set(left) - set(".,") if left.count(one) == 1))
    filled = [label.replace("...", free[len(free) - n :]) for label, n in zip(labels, n_free, strict=True)]
    return filled, out.replace("...", free)


def is_attention(
    operands: Sequence[fx.Node],  # What a product multiplies
) -> bool:
    """True for the product of a softmax with what it weighs.

    Parameters
    ----------
    operands : Sequence[fx.Node]
        What a product multiplies

    Returns
    -------
    bool
    """
    one = operands[0]
    while op_name(one) in KEEPS | RELAYS | PASSES and one.args and isinstance(one.args[0], fx.Node):
        one = one.args[0]
    return len(operands) == 2 and op_name(one) in ("softmax", "_softmax")


def batch_norm_factor(
    variance: Tensor,  # Running variance, at least 0
    epsilon: float,  # Added to the variance, above 0
    gain: Tensor | float | None = None,  # The factor learned, shaped to meet the variance; None: 1
) -> Tensor:  # Shaped as the variance; differentiable
    """What a batch norm in evaluation multiplies by.

    Parameters
    ----------
    variance : Tensor
        Running variance, at least 0
    epsilon : float
        Added to the variance, above 0
    gain : Tensor | float | None, default None
        The factor learned, shaped to meet the variance; None: 1

    Returns
    -------
    Tensor
        Shaped as the variance; differentiable
    """
    return (1.0 if gain is None else gain) / (variance + epsilon).sqrt()


def module_path(
    node: fx.Node,  # Of a traced program
) -> str:
    """Dotted name of the module whose code a node comes from.

    Parameters
    ----------
    node : fx.Node
        Of a traced program

    Returns
    -------
    str
    """
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].removeprefix("L['self'].").removeprefix("L['self']") if stack else ""
