"""A training on a GPU, or what is taken for one, of a model that does not wait for it."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from detrx.d2.engine import HookBase
from detrx.d2.structures import Boxes, Instances
from detrx.engine import Trainer

PERIOD = 4


class Regression(nn.Module):
    """Regresses the sum of the boxes of an image from its pixels, without waiting for the device."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 4)
        self.dropout = nn.Dropout(0.3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, batch: list[dict]) -> dict[str, Tensor]:
        images = torch.stack([each["image"].flatten() for each in batch]).float() / 255
        boxes = torch.stack([each["instances"].gt_boxes.tensor.sum(0) for each in batch])
        assert all(each["instances"].gt_classes.is_cuda for each in batch)
        error = self.norm(self.dropout(self.layer(images))).float() - boxes
        return {"loss_square": error.square().mean(), "loss_abs": error.abs().mean()}


class Data:
    """A loader that can start anywhere. `nan_at`: the batch with a box that is not finite."""

    def __init__(self, nan_at: int = -1):
        self.nan_at, self.position, self.asked = nan_at, 0, 0

    def set_position(self, num_batches: int) -> None:
        self.position = num_batches

    def __iter__(self):
        for index in itertools.count(self.position):
            self.asked = index
            yield [self.sample(index, image) for image in range(2)]

    def sample(self, index: int, image: int) -> dict:
        generator = torch.Generator().manual_seed(10 * index + image)
        boxes = torch.rand(3, 4, generator=generator)
        if index == self.nan_at and image == 1:
            boxes[0] = math.nan
        instances = Instances((2, 2), gt_boxes=Boxes(boxes), gt_classes=torch.arange(3))
        pixels = torch.randint(256, (3, 2, 2), generator=generator, dtype=torch.uint8)
        return {"image": pixels, "instances": instances, "image_id": 10 * index + image}


def make_trainer(data: Data, optimizer: type = torch.optim.AdamW, fused: bool = True, **settings) -> Trainer:
    torch.manual_seed(0)
    model = Regression().to("cuda")
    made = optimizer(model.parameters(), lr=0.1, fused=fused)
    return Trainer(model, data, made, max_norm=1.0, seed=0, log_period=PERIOD, **settings)


def weights(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().cpu() for parameter in trainer.model.parameters()]


class AfterStep(HookBase):
    def __init__(self, function):
        self.function = function

    def after_step(self) -> None:
        self.function(self.trainer)


def saved(trainer: Trainer) -> tuple[dict, dict]:
    """States as in a checkpoint: on the host, and no more changed by the training."""
    states = trainer.state_dict(), trainer.model.state_dict()
    return tree_map(lambda x: x.cpu().clone() if isinstance(x, Tensor) else x, states)
