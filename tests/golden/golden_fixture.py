"""Reads a golden fixture and compares a model with it; see the README beside the fixtures for what the tensors are."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detrx.checkpoint import convert_checkpoint
from detrx.d2.structures import Boxes, Instances
from detrx.modeling import Targets


class StubBackbone(nn.Module):
    """One convolution per stage, kernel = stride."""

    def __init__(self, stages: dict[str, dict]):
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, nn.Conv2d(3, stage["out_channels"], stage["kernel"], stage["stride"]))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: conv(images) for name, conv in self.named_children()}


@dataclass(frozen=True)
class Golden:
    path: Path

    @cached_property
    def meta(self) -> dict:
        return json.loads((self.path / "meta.json").read_text())

    @property
    def sizes(self) -> dict:
        return self.meta["hyper_parameters"]

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / "weights.safetensors")

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.path / "inputs.safetensors")

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.path / "expected.safetensors")

    @cached_property
    def grads(self) -> dict[str, Tensor]:
        return load_file(self.path / "grads.safetensors")

    def below(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.expected.items() if k.startswith(prefix)}

    def batch(self, ground_truth: str | None = None) -> list[dict]:
        """Detectron2 input; `ground_truth` is "normal", "empty" or "none"."""
        batch = []
        for index, (height, width) in enumerate(self.meta["batch"]["output_sizes_hw"]):
            image = self.inputs[f"image_{index}"]
            each = {"image": image, "height": height, "width": width, "image_id": index}
            if ground_truth is not None:
                boxes, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
                if ground_truth != "none":
                    boxes = self.inputs[f"gt/{ground_truth}/boxes_{index}"]
                    labels = self.inputs[f"gt/{ground_truth}/labels_{index}"]
                each["instances"] = Instances(tuple(image.shape[-2:]), gt_boxes=Boxes(boxes), gt_classes=labels)
            batch.append(each)
        return batch

    def targets(self, ground_truth: str) -> Targets:
        batch = self.batch(ground_truth)
        return Targets.from_instances([b["instances"] for b in batch], range(len(batch)), torch.device("cpu"))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """|difference| / (1 + |value|) <= tolerance everywhere."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error = ((actual.double() - expected.double()).abs() / (1 + expected.double().abs())).max() if actual.numel() else 0
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"


def assert_gradients(golden: Golden, model: nn.Module, run: str, tolerance: float = 1e-3) -> None:
    """The norm of every gradient, null meaning none, and the stored gradients (some runs have norms only)."""
    parameters = dict(model.named_parameters())
    stored = {k.removeprefix(f"{run}/"): v for k, v in golden.grads.items() if k.startswith(f"{run}/")}
    norms = golden.meta["grad_l2_norms"][run]
    assert not stored or stored.keys() == {key for key, norm in norms.items() if norm is not None}
    _, report = convert_checkpoint(golden.weights, model, "detrex")
    for key, norm in norms.items():
        pieces = report.pieces.get(key)
        if not pieces and not norm:
            continue  # a parameter of a method that is off
        grads = [parameters[piece.name].grad for piece in pieces]
        if norm is None:
            assert all(grad is None or not grad.any() for grad in grads), f"{key} got a gradient"
            continue
        grads = [piece.of_ours(grad) for piece, grad in zip(pieces, grads, strict=True)]
        grad = torch.cat(grads, dim=pieces[0].dim)
        assert_near(grad.norm(), torch.tensor(norm), tolerance, f"norm of the gradient of {key}")
        if stored:
            expected = stored[key].flatten()
            assert_near(grad.flatten()[: len(expected)], expected, tolerance, f"gradient of {key}")


def variants(root: Path, model: str) -> list[Golden]:
    return [Golden(path) for path in sorted((root / model).glob("*")) if (path / "meta.json").is_file()]
