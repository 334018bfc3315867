"""What each operation of torch's core set does: its class and its arithmetic."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.utils.flop_counter import flop_registry

Category = Literal[
    "product", "attention", "scan", "embedding", "pointwise", "reduction", "move", "unsupported"
]

PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution"})
REDUCTIONS = frozenset(
    {
        *("mean", "sum", "prod", "amax", "amin", "max", "min", "any", "all", "argmax", "cumsum"),
        *("var", "var_mean", "std", "linalg_vector_norm"),
        *("_softmax", "_log_softmax", "native_layer_norm", "_fused_rms_norm", "topk", "sort", "logsumexp"),
    }
)
MOVES = frozenset(
    {
        *("cat", "stack", "index_select", "gather", "index", "slice_scatter"),
        *("constant_pad_nd", "roll", "flip", "tril", "triu", "copy_", "scatter", "scatter_", "scatter_add"),
    }
)
# New tensors that hold a constant: their contents come from nowhere.
FACTORIES = frozenset(
    {
        *(
            "new_empty",
            "new_zeros",
            "new_ones",
            "new_full",
            "empty_like",
            "zeros_like",
            "ones_like",
            "full_like",
        ),
        *("new_empty_strided",),
    }
)
# Besides true views: copies that only change layout or type, which kernels do while they read.
LAYOUTS = frozenset(
    {
        *("_unsafe_view", "_reshape_alias", "_reshape_copy", "view_copy", "permute_copy", "expand_copy"),
        *("clone", "copy", "_to_copy", "repeat", "lift_fresh", "lift_fresh_copy", "alias", "detach"),
    }
)
# Element-wise operations per element for operators that do several at once.
SEVERAL_PER_ELEMENT = {
    "_softmax": 5,  # maximum, subtract, exponential, sum, divide
    "native_layer_norm": 8,  # mean 1, variance 3, normalise 2, weight and bias 2
    "_fused_rms_norm": 4,  # square, mean, normalise, weight
    "silu": 4,  # negate, exponential, add, divide
    "sigmoid": 4,
    "gelu": 5,  # x / sqrt 2, error function, add, two products
}
COMPLEX_PER_ELEMENT = 6  # four products, a sum and a difference
GELU_TANH_PER_ELEMENT = 8  # square, two products, add, product, tanh, add, product


def category_of(func: Any) -> Category:
    """Return the class of an operation, "unsupported" for those without a cost rule."""
    name = func.overloadpacket.__name__
    if name in PRODUCTS:
        return "product"
    if name == "embedding":
        return "embedding"
    if name in REDUCTIONS:
        return "reduction"
    if name in MOVES:
        return "move"
    return "pointwise" if torch.Tag.pointwise in func.tags or name == "polar" else "unsupported"


def flop_of(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    """Return the multiply-add work, 2 per multiply-add, by the formulas of torch's own flop counter."""
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def vector_flop_of(
    func: Any, kwargs: dict[str, Any], inputs: list[torch.Tensor], outputs: list[torch.Tensor]
) -> int:
    """Count element-wise operations: per output element, or per input element of a reduction."""
    name = func.overloadpacket.__name__
    if category_of(func) not in ("pointwise", "reduction"):
        return 0
    if outputs[0].is_complex():
        return COMPLEX_PER_ELEMENT * outputs[0].numel()
    if not outputs[0].is_floating_point():
        return 0
    if name == "gelu" and kwargs.get("approximate") == "tanh":
        return GELU_TANH_PER_ELEMENT * outputs[0].numel()
    size = inputs[0].numel() if name in REDUCTIONS else outputs[0].numel()
    return SEVERAL_PER_ELEMENT.get(name, 1) * size
