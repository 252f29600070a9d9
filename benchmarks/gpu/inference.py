"""Latency of inference for one image, eager and compiled."""

from pathlib import Path

import torch

from detrx.analysis import random_image, random_model
from detrx.analysis.benchmark import Setting, benchmark

from .context import Context
from .training import synchronisations

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODELS = {
    "Deformable-DETR++": CONFIGS / "deformable_detr" / "deformable_detr_plus_plus_r50.py",
    "DINO": CONFIGS / "dino" / "dino_r50.py",
}
DIGITS = {"Deformable-DETR++": CONFIGS / "deformable_detr" / "deformable_detr_digits.py"}


def run(context: Context) -> None:
    tiny, device = context.tiny, context.device
    size = (64, 64) if tiny else (800, 1333)
    models = {name: random_model(str(file), [], device) for name, file in (DIGITS if tiny else MODELS).items()}
    image = random_image(size, device)
    with torch.no_grad():
        for name, model in models.items():
            model([{"image": image}])
            places = synchronisations(lambda model=model: model([{"image": image}]), device)
            row = {"model": name, "synchronisations": sum(places.values())}
            context.report.row("waits", row)
            context.report.fact(**{f"synchronisations of {name}": dict(places)})
    first = next(iter(models))
    work = [(models, Setting(1, size, dtype, None)) for dtype in ("bfloat16", "float32")]
    if not tiny:  # compiling a detector takes a minute: one of them, last
        work.append(({first: models[first]}, Setting(1, size, "bfloat16", "inductor")))
    for candidates, setting in context.in_time(work, "settings"):
        try:
            rows = benchmark(candidates, setting, first, 1 if tiny else 20, device)
        except Exception as error:
            context.report.fail(f"inference of {setting}: {type(error).__name__}: {str(error)[:300]}")
            continue
        for row in rows:
            keys = ("model", "dtype", "compiler", "median_ms", "p10_ms", "p90_ms", "images_per_s")
            context.report.row("inference", {key: row[key] for key in keys})
