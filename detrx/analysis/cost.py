"""Cost of a model: parameters, multiply-adds and time of inference."""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from detrx.d2.config import instantiate
from detrx.engine.config import load_config, without_pretrained
from detrx.errors import InvalidInputError
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


def evaluation_loader(cfg: DictConfig, batch_size: int = 1) -> Iterable[list[dict[str, Any]]]:
    """The test loader of a training's config, without worker processes, with batches of this size."""
    loader = cfg.dataloader.test
    OmegaConf.update(loader, "batch_size", batch_size, force_add=True)
    OmegaConf.update(loader, "num_workers", 0, force_add=True)
    return instantiate(loader)


def evaluation_images(cfg: DictConfig, count: int, device: str = "cpu") -> list[Tensor]:
    """The first `count` images of the test loader of a config, or all if there are fewer: (3, H, W), as the model gets
    them.

    Raises:
        ValueError: the loader has no image.
    """
    batches = itertools.islice(evaluation_loader(cfg), count)
    images = [each["image"].to(device) for batch in batches for each in batch]
    if not images:
        raise InvalidInputError("the test loader of the config has no image to measure costs on")
    return images


@torch.no_grad()
def model_cost(model: nn.Module, images: Sequence[Tensor], rounds: int) -> dict[str, Any]:
    """Measure what inference of a `DetectionTransformer` costs, one image (3, H, W) at a time.

    Costs depend on the sizes of the images. Where the work depends on the queries, as with routers, they also depend on
    the weights and on what the images show.

    Returns:
        `parts`: by name of the part, {"parameters", "flops"}; `parameters` and `flops` of inference, that is of all
        parts but the methods. `flops` are multiply-adds per image, the mean over the images. `ms_per_image`: the median
        of `rounds` calls with each image, None without rounds.
    """
    detector = as_detection_transformer(model)
    counts = [count_flops(detector, detector.preprocess([{"image": image}]).tensor) for image in images]
    parts = {
        name: {
            "parameters": sum(parameter.numel() for parameter in part.parameters()),
            "flops": round(statistics.fmean(count.by_module()[f"model.{name}"] for count in counts)),
        }
        for name, part in model.named_children()
    }
    calls = {index: (lambda image=image: model([{"image": image}])) for index, image in enumerate(images)}
    times = interleaved_times(calls, rounds, str(images[0].device), rounds > 0)
    return {
        "parts": parts,
        "parameters": sum(part["parameters"] for name, part in parts.items() if name != "methods"),
        "flops": round(statistics.fmean(count.total() for count in counts)),
        "ms_per_image": statistics.median(itertools.chain.from_iterable(times.values())) if rounds else None,
    }
