"""What a model costs: parameters, multiply-adds and time of inference."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detrx.d2.config import instantiate
from detrx.engine.config import load_config, without_pretrained

from .flops import count_flops


@torch.no_grad()
def model_cost(
    config: str, overrides: Sequence[str], size: tuple[int, int], rounds: int, device: str = "cpu"
) -> dict[str, Any]:
    """Costs of the model of a config file, with random weights, for one image of `size` (height, width).

    Returns:
        `parts`: by name of the part, {"parameters", "flops"}; `parameters` and `flops` (multiply-adds) of inference,
        that is of all parts but the methods; `ms_per_image`, the median of `rounds` calls, None without rounds.

    Raises:
        ConfigError: the config or an override is wrong.
    """
    model = instantiate(without_pretrained(load_config(config, list(overrides)).model)).to(device).eval()
    flops = count_flops(model, torch.randn(1, 3, *size, device=device))
    parts = {
        name: {
            "parameters": sum(parameter.numel() for parameter in part.parameters()),
            "flops": int(flops.by_module()[f"model.{name}"]),
        }
        for name, part in model.named_children()
    }
    image = torch.randint(256, (3, *size), dtype=torch.uint8, device=device)
    return {
        "parts": parts,
        "parameters": sum(part["parameters"] for name, part in parts.items() if name != "methods"),
        "flops": int(flops.total()),
        "ms_per_image": milliseconds(model, image, rounds),
    }


def milliseconds(model: nn.Module, image: Tensor, rounds: int) -> float | None:
    """Median time of `rounds` calls of a detector with one image (3, H, W), after one call to warm up."""
    times = []
    for _ in range(rounds + 1 if rounds else 0):
        start = time.perf_counter()
        model([{"image": image}])
        if image.is_cuda:
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:]) if rounds else None
