"""A model, data and an evaluator that take milliseconds but have everything that a resumed training must restore.

Dropout and augmentation draw random numbers, batch normalisation has buffers.
"""

import os
import signal
import time

import torch
from torch import nn

from detrx.d2.evaluation import DatasetEvaluator
from detrx.d2.utils import comm
from detrx.data import read_image
from detrx.errors import NonFinitePredictionError


def toy_dataset(size: int = 32) -> list[dict]:
    return [{"file_name": f"{i}.png", "image_id": i, "width": 8, "height": 8} for i in range(size)]


class ToyMapper:
    """A sample is 8 numbers, which depend on its id and, in training, on noise."""

    def __init__(self, noise: float = 0.1, broken: int = -1, missing: bool = False):
        self.noise, self.broken, self.missing = noise, broken, missing

    def __call__(self, record: dict) -> dict:
        if self.missing:
            read_image(f"/nowhere/{record['file_name']}")
        values = torch.sin(torch.arange(8) * (record["image_id"] + 1.0)) + self.noise * torch.randn(8)
        if record["image_id"] == self.broken:
            values = values / 0
        return {**record, "image": values}


class ToyModel(nn.Module):
    """Regress the sum of a sample's numbers. Environment variables let it misbehave at a step of this process."""

    def __init__(self, width: int = 16, dropout: float = 0.2, fail_in_eval: bool = False, signal_in_eval: str = ""):
        super().__init__()
        self.signal_in_eval = "SIGKILL" if fail_in_eval else signal_in_eval
        self.backbone = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 1)
        self.calls = 0

    def forward(self, batch: list[dict]):
        if self.training:
            self._misbehave()
        elif self.signal_in_eval:
            os.kill(os.getpid(), getattr(signal, self.signal_in_eval))
        images = torch.stack([sample["image"] for sample in batch]).to(self.head.weight.device)
        predicted = self.head(self.dropout(self.norm(self.backbone(images)).relu()))[:, 0]
        if not self.training:
            return [
                {"score": value.item(), "image_id": s["image_id"]} for value, s in zip(predicted, batch, strict=True)
            ]
        error = predicted - images.sum(1)
        name = os.environ.get("TOY_LOSS", "loss_abs")
        return {"loss_square": error.square().mean(), name: 0.5 * error.abs().mean()}

    def _misbehave(self) -> None:
        step, self.calls = self.calls, self.calls + 1
        if step == int(os.environ.get("TOY_KILL_AT", -1)):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == int(os.environ.get("TOY_SIGNAL_AT", -1)):
            os.kill(os.getpid(), getattr(signal, os.environ["TOY_SIGNAL"]))
        if step == int(os.environ.get("TOY_DIVERGE_AT", -1)):
            raise NonFinitePredictionError("predictions are NaN or infinite for image ids [3]")
        time.sleep(float(os.environ.get("TOY_SLEEP", 0)))


class ToyEvaluator(DatasetEvaluator):
    """Mean and count of the predictions, over all processes."""

    def reset(self) -> None:
        self.scores = {}

    def process(self, inputs: list, outputs: list) -> None:
        torch.rand(1)  # evaluators may draw random numbers
        self.scores.update((output["image_id"], output["score"]) for output in outputs)

    def evaluate(self) -> dict:
        scores = {image: score for part in comm.all_gather(self.scores) for image, score in part.items()}
        mean = sum(scores[image] for image in sorted(scores)) / len(scores)
        print(f"mean of the predictions, unrounded: {mean!r}")
        return {"toy": {"AP": mean, "count": len(scores)}}
