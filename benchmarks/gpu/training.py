"""Training steps of whole detectors: Deformable-DETR++ (R50) with each method, and the baseline of each."""

import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness import medians, peak_mib
from training import autocast, random_batch
from training_step import CONFIGS, baselines

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.engine.config import without_pretrained
from detrx.modeling.criterion import Criterion
from detrx.modeling.matching import Assignment

from .context import Context

DIGITS = {
    "Deformable-DETR++": "deformable_detr/deformable_detr_digits",
    "+ H-DETR branch": "h_detr/h_deformable_detr_digits",
    "+ Mr. DETR": "mr_detr/mr_detr_deformable_digits",
    "+ Mr. DETR++": "mr_detr/mr_detr_pp_deformable_digits",
}


class Training:
    """A detector with its optimizer, and a batch that is on the device already, as the trainer uploads it ahead."""

    def __init__(self, config: str, device: str, dtype: str, batch: int, size: tuple[int, int]):
        torch.manual_seed(0)
        cfg = model_zoo.get_config(config)
        self.args = Namespace(device=device, dtype=dtype)
        self.model = instantiate(without_pretrained(cfg.model)).to(device).train()
        cfg.optimizer.params.model = self.model
        self.optimizer = instantiate(cfg.optimizer)
        inputs = random_batch(batch, size, (10, 20), cfg.model.decoder.heads.num_classes)
        self.inputs = [
            {"image": each["image"].to(device), "instances": each["instances"].to(device)} for each in inputs
        ]

    def step(self) -> None:
        self.optimizer.zero_grad()
        with autocast(self.args):
            losses = self.model(self.inputs)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()


class Replay:
    """`Criterion.assign` that answers as in a step before: what a step costs without matching."""

    def __init__(self, training: Training):
        self.training, self.answers = training, []
        original = Criterion.assign

        def record(*args: Any) -> list[Assignment]:
            self.answers.append(original(*args))
            return self.answers[-1]

        with mock.patch.object(Criterion, "assign", record):
            training.step()

    def step(self) -> None:
        answers = iter(self.answers)
        with mock.patch.object(Criterion, "assign", lambda *_: next(answers)):
            self.training.step()


def run(context: Context) -> None:
    tiny, device = context.tiny, context.device
    configs, size, batch = (DIGITS, (128, 128), 1) if tiny else (CONFIGS, (800, 1333), 2)
    context.report.fact(size=size, batch=batch, dtype="bfloat16")
    functions: dict[str, Callable[[], None]] = {}
    rows: dict[str, dict[str, object]] = {}
    seconds = 0.0  # of a round
    for name in context.in_time(configs, "detectors"):
        training = Training(configs[name], device, "bfloat16", batch, size)
        training.step()
        seconds += 2e-3 * medians({name: training.step}, 1, device, warm_up=False)[name]
        peak = peak_mib(training.step, device)
        places = synchronisations(training.step, device)
        replay = Replay(training)
        functions |= {name: training.step, f"{name} without matching": replay.step}
        rows[name] = {"training step": name, "peak GiB": peak / 1024, "synchronisations": sum(places.values())}
        context.report.row("memory", rows[name])
        context.report.fact(**{f"synchronisations of {name}": dict(places)})
    rounds = 1 if tiny else max(2, min(10, int(0.8 * context.left() / max(seconds, 1e-3)) - 1))
    times = medians(functions, rounds, device, warm_up=not tiny)
    plain = baselines(configs)
    for name, row in rows.items():
        whole, without = times[name], times[f"{name} without matching"]
        row = row | {"ms": whole, "images/s": 1e3 * batch / whole, "times plain": whole / times[plain[name]]}
        context.report.row("steps", row | {"matching %": 100 * (whole - without) / whole})


def synchronisations(function: Callable[[], object], device: str) -> Counter[str]:
    """Where Python waits for the device in a call: how often, by file and line."""
    if device != "cuda":
        function()
        return Counter()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(_place(each) for each in caught if "synchroniz" in str(each.message))


def _place(warning: warnings.WarningMessage) -> str:
    return f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"
