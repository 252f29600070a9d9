"""Small random models of Hugging Face transformers, one batch for them and for ours, and the comparison of both."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detrx.checkpoint import convert_checkpoint
from detrx.d2.structures import Boxes, Instances
from detrx.modeling import DetectionTransformer
from tests.golden.golden_fixture import assert_near

BACKBONE = "test_resnet"
"""A timm model of half a million parameters: plain and bottleneck blocks, stem of three convolutions."""
BACKBONE_CHANNELS = {"res2": 32, "res3": 48, "res4": 192, "res5": 96}
NUM_CLASSES = 7
LOSS_NAMES = {"loss_ce": "loss_class", "loss_bbox": "loss_bbox", "loss_giou": "loss_giou"}


def backbone_config(out_indices: list[int]):
    """The `backbone_config` of a transformers model; stage 1 is res2."""
    transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers")
    return transformers.TimmBackboneConfig(
        backbone=BACKBONE, out_indices=out_indices, use_pretrained_backbone=False, num_channels=3, features_only=True
    )


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value that matters, once for those that are shared."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.2 * noise.abs())
            elif "running_mean" in name or ".bn" in name or "norm" in name or "downsample" in name:
                tensor.add_(0.1 * noise)
            elif tensor.ndim > 1:
                tensor.add_(0.05 * noise)
            else:
                tensor.add_(0.3 * noise)
    return model


def converted(reference: nn.Module, ours: DetectionTransformer, folder: Path) -> DetectionTransformer:
    """`ours` with the weights of a transformers model, by way of the folder that its `save_pretrained` writes."""
    reference.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    weights, _ = convert_checkpoint(folder, ours)
    ours.load_state_dict(weights)
    return ours


@dataclass(frozen=True)
class Batch:
    """Two images of different sizes, the smaller one padded at the right and bottom.

    Attributes:
        images: per image (3, H, W), normalised.
        boxes: per image (n, 4) cxcywh in [0, 1] of the image.
        labels: per image (n,).
    """

    images: list[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]

    @property
    def size(self) -> tuple[int, int]:
        return max(i.shape[-2] for i in self.images), max(i.shape[-1] for i in self.images)

    @property
    def padded(self) -> Tensor:
        """(B, 3, H, W)."""
        out = torch.zeros(len(self.images), 3, *self.size)
        for index, image in enumerate(self.images):
            out[index, :, : image.shape[-2], : image.shape[-1]] = image
        return out

    @property
    def padding_mask(self) -> Tensor:
        """(B, H, W) bool, True for padding."""
        mask = torch.ones(len(self.images), *self.size, dtype=torch.bool)
        for index, image in enumerate(self.images):
            mask[index, : image.shape[-2], : image.shape[-1]] = False
        return mask

    def for_transformers(self) -> dict:
        """Arguments of a transformers model."""
        labels = [{"class_labels": c, "boxes": b} for c, b in zip(self.labels, self.boxes, strict=True)]
        return {"pixel_values": self.padded, "pixel_mask": (~self.padding_mask).long(), "labels": labels}

    def for_detrx(self) -> list[dict]:
        """Detectron2 input of a model whose pixel_mean is 0 and pixel_std 1."""
        inputs = []
        for image, boxes, labels in zip(self.images, self.boxes, self.labels, strict=True):
            height, width = image.shape[-2:]
            centre, size = boxes.split(2, dim=-1)
            corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
            instances = Instances(
                (height, width),
                gt_boxes=Boxes(corners * torch.tensor([width, height, width, height])),
                gt_classes=labels,
            )
            inputs.append({"image": image, "instances": instances})
        return inputs


def random_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for count in (3, 2):
        centre = torch.rand(count, 2, generator=generator) * 0.6 + 0.2
        boxes.append(torch.cat([centre, torch.rand(count, 2, generator=generator) * 0.3 + 0.05], dim=-1))
    return Batch(
        images=[torch.randn(3, h, w, generator=generator) for h, w in ((128, 176), (160, 120))],
        boxes=boxes,
        labels=[torch.randint(NUM_CLASSES, (len(b),), generator=generator) for b in boxes],
    )


@torch.no_grad()
def assert_predictions_equal(reference: nn.Module, ours: DetectionTransformer, batch: Batch) -> None:
    """Logits and boxes of all decoder layers."""
    expected = reference.eval()(**batch.for_transformers())
    found = ours.eval().predict(batch.padded, batch.padding_mask)["main"]
    layers = [*expected.auxiliary_outputs, {"logits": expected.logits, "pred_boxes": expected.pred_boxes}]
    assert len(layers) == len(found.logits)
    for index, layer in enumerate(layers):
        assert layer["logits"].std() > 0.1  # the comparison could fail
        assert_near(found.logits[index], layer["logits"], 1e-4, f"logits of layer {index}")
        assert_near(found.boxes[index], layer["pred_boxes"], 1e-4, f"boxes of layer {index}")


def assert_losses_equal(
    reference: nn.Module, ours: DetectionTransformer, batch: Batch, weights: dict[str, float]
) -> None:
    """All losses that transformers computes, which leaves out those of the encoder.

    Args:
        weights: of transformers' losses by name; it gives them without.
    """
    result = reference.train()(**batch.for_transformers())
    expected = {}
    for name, value in result.loss_dict.items():
        kind = name.rstrip("0123456789").rstrip("_")
        if kind in weights:
            expected[name.replace(kind, LOSS_NAMES[kind])] = value * weights[kind]
    found = {name: value for name, value in ours.train()(batch.for_detrx()).items() if not name.endswith("_enc")}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_near(value, expected[name], 1e-4, name)
    assert_near(sum(found.values()), result.loss, 1e-4, "sum of the losses")


def without_normalisation(model_config):
    """The config of a model that takes images as they are."""
    cfg = copy.deepcopy(model_config)
    cfg.pixel_mean, cfg.pixel_std = [0.0] * 3, [1.0] * 3
    return cfg
