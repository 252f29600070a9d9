"""Cost of a model: parameters, multiply-adds and time of inference."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrx.d2.config import instantiate
from detrx.engine.config import load_config, without_pretrained
from detrx.modeling import as_detection_transformer

from .flops import count_flops
from .timing import interleaved_times


def random_model(config: str, overrides: Sequence[str], device: str = "cpu") -> nn.Module:
    """The model of a config file with random weights, in evaluation mode.

    Raises:
        ConfigError: the config or an override is wrong.
    """
    return instantiate(without_pretrained(load_config(config, list(overrides)).model)).to(device).eval()


def random_image(size: tuple[int, int], device: str = "cpu") -> Tensor:
    """(3, H, W) uint8."""
    return torch.randint(256, (3, *size), dtype=torch.uint8, device=device)


@torch.no_grad()
def model_cost(model: nn.Module, image: Tensor, rounds: int) -> dict[str, Any]:
    """Measure the cost of a `DetectionTransformer` for one image (3, H, W).

    Returns:
        `parts`: by name of the part, {"parameters", "flops"}; `parameters` and `flops` (multiply-adds) of inference,
        that is of all parts but the methods; `ms_per_image`, the median of `rounds` calls, None without rounds.
    """
    detector = as_detection_transformer(model)
    flops = count_flops(detector, torch.randn(1, *image.shape, device=image.device))
    parts = {
        name: {
            "parameters": sum(parameter.numel() for parameter in part.parameters()),
            "flops": int(flops.by_module()[f"model.{name}"]),
        }
        for name, part in model.named_children()
    }
    times = interleaved_times({"model": lambda: model([{"image": image}])}, rounds, str(image.device), rounds > 0)
    return {
        "parts": parts,
        "parameters": sum(part["parameters"] for name, part in parts.items() if name != "methods"),
        "flops": int(flops.total()),
        "ms_per_image": statistics.median(times["model"]) if rounds else None,
    }
