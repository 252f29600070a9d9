"""Every operator, called with one argument that does not fit: the error names it and shows the shapes."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detrx.ops import (
    expert_linear,
    moe_combine,
    moe_dispatch,
    moe_route,
    ms_deform_attn,
    ms_deform_attn_fused,
    query_gather,
    query_route,
    query_scatter,
)

SAMPLED = {
    "value": torch.randn(2, 36, 2, 4),
    "spatial_shapes": torch.tensor([[5, 6], [3, 2]]),
    "level_start_index": torch.tensor([0, 30]),
}
POINTS, WEIGHTS = torch.rand(2, 7, 2, 2, 3, 2), torch.rand(2, 7, 2, 2, 3)
ROUTING = moe_route(torch.randn(5, 4), 2)
KEEP = torch.arange(22).view(2, 11) % 2 == 0
INDEX, VALID = query_route(KEEP)
CALLS: dict[Callable, dict[str, Tensor | int]] = {
    ms_deform_attn: {**SAMPLED, "sampling_locations": POINTS, "attention_weights": WEIGHTS},
    ms_deform_attn_fused: {**SAMPLED, "reference": torch.rand(2, 7, 2, 4), "offsets": POINTS, "logits": WEIGHTS},
    moe_route: {"logits": torch.randn(5, 4), "k": 2},
    moe_dispatch: {"x": torch.randn(5, 3), "order": ROUTING.order, "place": ROUTING.place},
    moe_combine: {
        "y": torch.randn(10, 3), "weights": ROUTING.weights, "order": ROUTING.order, "place": ROUTING.place,
    },
    expert_linear: {
        "x": torch.randn(10, 3), "weight": torch.randn(4, 3, 6), "bias": torch.randn(4, 6), "ends": ROUTING.ends,
    },
    query_route: {"keep": KEEP},
    query_gather: {"x": torch.randn(2, 11, 3), "keep": KEEP},
    query_scatter: {"base": torch.randn(2, 11, 3), "packed": torch.randn(2, 6, 3), "index": INDEX, "valid": VALID},
}  # fmt: skip


def cases(*excluded: tuple[Callable, str]) -> list:
    """Every pair of an operator and one of its tensors, but for the `excluded`."""
    pairs = [(op, name) for op, arguments in CALLS.items() for name, x in arguments.items() if isinstance(x, Tensor)]
    return [pytest.param(*pair, id=f"{pair[0].__name__}-{pair[1]}") for pair in pairs if pair not in excluded]


ONLY_TENSORS = [(moe_route, "logits"), (query_route, "keep")]
OF_ANY_DTYPE = [(moe_dispatch, "x"), (moe_combine, "y"), (moe_combine, "weights"), (query_gather, "x")]
# A shape, or the letters of an expected one.
SHAPE = re.compile(r"\[[\d, ]*\]|\([A-Z\d][^)]*\)")


def error_of(function: Callable, name: str, replacement: Tensor, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        function(**{**CALLS[function], name: replacement})
    message = str(caught.value)
    assert message.startswith(function.__name__ + ": ") and re.search(rf"\b{name}\b", message), message
    return message


@pytest.mark.parametrize("function,name", cases())
def test_wrong_rank(function, name):
    replacement = CALLS[function][name][..., 0]
    if function is query_gather and name == "x":
        replacement = replacement[..., 0]  # (B, N) is fine
    message = error_of(function, name, replacement, ValueError)
    assert str(list(replacement.shape)) in message and len(SHAPE.findall(message)) >= 2, message


@pytest.mark.parametrize("function,name", cases(*ONLY_TENSORS))
def test_wrong_size(function, name):
    message = error_of(function, name, CALLS[function][name][1:], ValueError)
    assert len(SHAPE.findall(message)) >= 2, message


@pytest.mark.parametrize("function,name", cases(*ONLY_TENSORS))
def test_mixed_devices(function, name):
    argument = CALLS[function][name]
    message = error_of(function, name, argument.to("meta"), ValueError)
    assert "meta" in message and "cpu" in message
    assert str(list(argument.shape)) in message and len(SHAPE.findall(message)) >= 2, message


@pytest.mark.parametrize("function,name", cases(*ONLY_TENSORS, *OF_ANY_DTYPE))
def test_mixed_dtypes(function, name):
    argument = CALLS[function][name]
    replacement = argument.double() if argument.is_floating_point() else argument.to(torch.float32)
    message = error_of(function, name, replacement, TypeError)
    assert "float32" in message
    if argument.is_floating_point():
        assert "float64" in message and len(SHAPE.findall(message)) >= 2, message


@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_fused])
def test_wrong_level_sum(function):
    with pytest.raises(ValueError, match=r"levels of spatial_shapes .*36 tokens, .* value of shape \[2, 37, 2, 4\]"):
        function(**{**CALLS[function], "value": torch.randn(2, 37, 2, 4)})


@pytest.mark.parametrize("function", sorted(set(CALLS) - {query_route, query_gather}, key=lambda f: f.__name__))
def test_calls_on_meta_tensors(function):
    """All arguments on "meta": as a model does whose cost is counted without running it."""
    arguments = CALLS[function]
    on_meta = {name: x.to("meta") if isinstance(x, Tensor) else x for name, x in arguments.items()}
    ours, expected = function(**on_meta), function(**arguments)
    for a, b in zip(*([x] if isinstance(x, Tensor) else x for x in (ours, expected)), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and a.is_meta
