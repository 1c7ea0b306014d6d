"""What is known of the operations of a traced program: which move numbers, keep them, mix them, or carry weights.

A plain module, not a notebook: tables that `wiring` looks things up in. An operation in none of them, and not marked as
pointwise by torch itself, is unknown, and is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from specialize_nb.network.program import Program, shape_at

# Numbers are moved about, none is changed.
MOVES = set(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze transpose permute t numpy_T slice select narrow "
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


def op_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return node.op
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, key: str, place: int, default: Any = None) -> Any:
    """An argument of a node, given by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(key, default)


def is_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value (the first, if there are several) for a batch of one."""
    value = node.meta["val"]
    return shape_at(value[0] if isinstance(value, tuple | list) else value, 1)


def depends_on_inputs(node: fx.Node, program: Program) -> bool:
    """True if a value holds numbers of the inputs, not only their sizes."""
    stack, seen = [node], set()
    while stack:
        one = stack.pop()
        if one in seen or program.is_fixed(one.name) or op_name(one) in CONSTANTS:
            continue
        seen.add(one)
        if one.op == "placeholder":
            return True
        stack += one.all_input_nodes
    return False


def is_attention(node: fx.Node, operands: Sequence[fx.Node]) -> bool:
    """True for the product of a softmax with what it weighs."""
    one = operands[0]
    while op_name(one) in KEEPS | RELAYS | PASSES and one.args and isinstance(one.args[0], fx.Node):
        one = one.args[0]
    return len(operands) == 2 and op_name(one) in ("softmax", "_softmax")


def module_path(node: fx.Node) -> str:
    """Dotted name of the module whose code a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].removeprefix("L['self'].").removeprefix("L['self']") if stack else ""
