"""Multiply-adds of a detector, with the operators of detrx counted."""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.modeling import DetectionTransformer

Handle = Callable[[list[Any], list[Any]], int]


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _numel(value: Any) -> int:
    return torch.Size(_shape(value)).numel()


def _ms_deform_attn(inputs: list[Any], outputs: list[Any]) -> int:
    """Four corners for every point of every query and head, D channels each."""
    *_, points = inputs
    channels = _shape(inputs[0])[-1]
    return 4 * channels * _numel(points)


def _scaled_dot_product_attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries times keys, and weights times values."""
    query, key, value = (_shape(each) for each in inputs[:3])
    return torch.Size(query[:-1]).numel() * key[-2] * (query[-1] + value[-1])


def _expert_linear(inputs: list[Any], outputs: list[Any]) -> int:
    return _numel(outputs[0]) * _shape(inputs[0])[-1]


def _moe_combine(inputs: list[Any], outputs: list[Any]) -> int:
    return _numel(inputs[0])


HANDLES: dict[str, Handle] = {
    "detrx::ms_deform_attn": _ms_deform_attn,
    "detrx::ms_deform_attn_fused": _ms_deform_attn,
    "detrx::expert_linear": _expert_linear,
    "detrx::moe_combine": _moe_combine,
    "aten::scaled_dot_product_attention": _scaled_dot_product_attention,
}


class _Inference(nn.Module):
    """What is counted: images to predictions of the last layer."""

    def __init__(self, model: DetectionTransformer):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        main = self.model.predict(images, None)["main"]
        return main.logits[-1], main.boxes[-1]


def count_flops(model: DetectionTransformer, images: Tensor) -> FlopCountAnalysis:
    """Count multiply-adds of inference (what papers call FLOPs), as fvcore and Detectron2 do: one per multiply-add of
    convolutions, matrix products, attention and deformable attention; elementwise operations are not counted.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W), without padding; FLOPs depend on H and W only, and on routing where a model routes.

    Returns:
        fvcore's analysis: `total()`, `by_module()`, `by_operator()`.
    """
    if model.training:
        raise InvalidInputError("count_flops needs a model in evaluation mode: call model.eval() first")
    analysis = FlopCountAnalysis(_Inference(model), images)
    analysis.set_op_handle(**HANDLES)
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
