"""Every detector and every method on the device: no tensor on another one, no dtypes that do not go together there."""

import pytest
import torch
from torch import nn

from detrx.d2.utils import EventStorage
from detrx.modeling import DetectionTransformer
from detrx.modeling.backbone import TimmBackbone
from detrx.ops._extension import _warn_fallback
from tests.projects import contract

from . import budget
from .harness import on_pretended_cuda, pads_one_image, waits, without_kernels

MODELS = [*contract.DETECTORS, *("+".join(pair) for pair in contract.ONCE)]
"""Detectors, and method + detector."""


def build(name: str) -> DetectionTransformer:
    method, _, detector = name.rpartition("+")
    model = contract.with_and_without(method, detector)[0] if method else contract.detector(detector)
    return model.to("cuda")


def step(model: nn.Module, batch: list[dict], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Forward and backward pass in training, under autocast to `dtype` if one is given."""
    torch.manual_seed(0)
    model.train().zero_grad()
    with EventStorage(0), torch.autocast("cuda", dtype, enabled=dtype is not None):
        losses = model(batch)
    sum(losses.values()).backward()
    return losses


def check_step(model: nn.Module, batch: list[dict], dtype: torch.dtype | None) -> None:
    losses = step(model, batch, dtype)
    for name, loss in losses.items():
        assert loss.device.type == "cuda" and loss.dtype == torch.float32, f"{name}: {loss.device}, {loss.dtype}"
        assert loss.isfinite(), name
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient; in distributed training every one needs one"
            assert (parameter.grad.device, parameter.grad.dtype) == (parameter.device, parameter.dtype), name


@torch.no_grad()
def check_inference(model: nn.Module, batch: list[dict], dtype: torch.dtype | None) -> None:
    model.eval()
    with torch.autocast("cuda", dtype, enabled=dtype is not None):
        outputs = model([{"image": each["image"]} for each in batch])
    for each, output in zip(batch, outputs, strict=True):
        found = output["instances"]
        assert found.image_size == tuple(each["image"].shape[-2:]) and len(found) > 0
        for name, value in found.get_fields().items():
            tensor = getattr(value, "tensor", value)
            assert tensor.device.type == "cuda", name
            assert tensor.dtype == (torch.int64 if name in ("pred_classes", "pred_queries") else torch.float32), name


@pytest.mark.parametrize("name", MODELS)
@on_pretended_cuda
def test_float16_with_an_image_without_boxes(name: str):
    model, batch = build(name), contract.make_batch(2, 0)
    check_step(model, batch, torch.float16)
    check_inference(model, batch, torch.float16)


@pytest.mark.parametrize("name", MODELS)
@pads_one_image
@on_pretended_cuda
def test_float32_with_one_image_and_no_boxes(name: str):
    model, batch = build(name), contract.make_batch(0)
    check_step(model, batch, None)
    check_inference(model, batch, None)


def to_device(batch: list[dict]) -> list[dict]:
    return [{**each, "image": each["image"].to("cuda"), "instances": each["instances"].to("cuda")} for each in batch]


@pytest.mark.parametrize("name", contract.DETECTORS)
@on_pretended_cuda
def test_losses_are_those_of_the_cpu_and_of_batches_on_the_device(name: str):
    """Where Python chooses by the device, both ways compute the same. Where a prefetcher has uploaded a batch, losses
    are the same, and the host waits for nothing but the assignment."""
    model, batch = contract.detector(name), contract.make_batch(3, 1)
    on_cpu = contract.losses_of(model, batch)
    expected = step(model.to("cuda"), batch, None)
    batch = to_device(batch)
    with waits() as found:
        losses = step(model, batch, None)
    assert found.count == 1, found
    assert losses.keys() == expected.keys() == on_cpu.keys()
    for key, loss in losses.items():
        assert torch.equal(loss, expected[key]), key
        torch.testing.assert_close(loss.detach().cpu(), on_cpu[key].detach(), rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize(
    "name",
    ["deformable_detr_plus_plus", "query_routing+dab_detr", "mr_detr/mr_detr_pp_dino_digits.py"],
)
@on_pretended_cuda
def test_operators_without_kernels(name: str):
    """Their PyTorch code, as on a GPU where nothing was compiled."""
    if name.endswith(".py"):
        model, batch = budget.build(name), budget.make_batch(3, 1)
    else:
        model, batch = build(name), contract.make_batch(3, 1)
    _warn_fallback.cache_clear()
    with without_kernels(), pytest.warns(UserWarning, match="no compiled kernels for cuda"):
        check_step(model, batch, torch.bfloat16)
        check_inference(model, batch, None)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1, 2, 1], "embed_dim": 24, "num_heads": [1, 1, 2, 2]}),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "drop_path_rate": 0.2}),
        ("resnet18d", {"layers": [1, 1, 1, 1], "output_stride": 16}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, None])
@on_pretended_cuda
def test_backbones(name: str, arguments: dict, dtype: torch.dtype | None):
    checkpointing = dtype is None
    backbone = TimmBackbone(
        name, ["res4", "res5"], frozen_batch_norm=True, norm_features=True, activation_checkpointing=checkpointing,
        freeze_at=1, model_args=arguments,
    ).to("cuda")  # fmt: skip
    with torch.autocast("cuda", dtype, enabled=dtype is not None), waits() as found:
        maps = backbone.train()(torch.rand(2, 3, 70, 90, device="cuda"))
        sum(each.float().sum() for each in maps.values()).backward()
    assert found.count == 0, found
    assert all(each.device.type == "cuda" for each in maps.values())
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)
