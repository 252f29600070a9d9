"""Samples of a config's data loaders as the model gets them: after augmentation, with their boxes."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image

from detrx.d2.config import instantiate
from detrx.data.bad_files import UNREADABLE

from .visualize import Box, captioned, class_colour, class_name, draw_boxes, fitted


def loader_samples(
    cfg: DictConfig, split: str, num: int, seed: int, skip: Callable[[Exception], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Model inputs with `image` and `instances`, the same for the same seed.

    Args:
        cfg: config of a training.
        split: "train": the first samples of a training with `train.seed=<seed>` (which may batch them in another
            order); "test": test images drawn at random, with their ground truth.
        num: how many; of test images, at most as many as there are.
        skip: called with the error of an image that cannot be read, which is then left out of the `num`; None: it is
            raised.

    Raises:
        FileNotFoundError, ValueError: a file of the dataset is missing or faulty; names it.
    """
    loader = copy.deepcopy(cfg.dataloader[split])
    samples: Iterator[dict[str, Any]]
    if split == "train":
        loader.update(total_batch_size=1, num_workers=0, aspect_ratio_grouping=False, seed=seed)
        samples = (sample for (sample,) in _attempts(instantiate(loader), num, skip))
    else:
        loader.mapper.is_train = True  # adds the ground truth
        records, mapper = instantiate(loader.dataset), instantiate(loader.mapper)
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed))[:num]
        samples = _attempts(map(mapper, (records[index] for index in order.tolist())), num, skip)
    yield from samples


def _attempts(source: Iterable[Any], num: int, skip: Callable[[Exception], None] | None) -> Iterator[Any]:
    """What `num` steps of an iterable give that goes on after an error."""
    steps = iter(source)
    for _ in range(num):
        try:
            yield next(steps)
        except StopIteration:
            return
        except UNREADABLE as error:
            if skip is None:
                raise
            skip(error)


def draw_sample(sample: dict[str, Any], class_names: Sequence[str], width: int = 400) -> Image.Image:
    """The image as the model gets it, scaled to `width`, with its boxes and classes; under it file, size and number of
    boxes."""
    image, instances = sample["image"], sample["instances"]
    boxes = [
        Box(tuple(box), class_name(index, class_names), class_colour(index))
        for box, index in zip(instances.gt_boxes.tensor.tolist(), instances.gt_classes.tolist(), strict=True)
    ]
    drawn = draw_boxes(Image.fromarray(image.permute(1, 2, 0).numpy()), boxes)
    count = f"{len(boxes)} box{'es' * (len(boxes) != 1)}"
    text = f"{Path(sample['file_name']).name}  {image.shape[2]} x {image.shape[1]}, {count}"
    return captioned(fitted(drawn, width), text)
