#!/usr/bin/env python3
"""What distillation costs (D3ETR): a training step with a teacher, beside the teacher's forward pass and the student's
step without it.

For each config: forward, losses and backward of a batch of the student alone; the forward pass of the teacher on the
same images, without gradients; and a step of both with all parts of the distillation. The bar is on the ratio of the
last one to the sum of the others. The candidates take turns, so that a busy moment hits all. Weights are random.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import machine, medians, peak_mib, print_table, write_json
from omegaconf import DictConfig
from training import add_batch_arguments, autocast, check_batch_arguments, make_inputs, train_step

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.engine.config import without_pretrained
from detrx.modeling import DetectionTransformer
from detrx.projects.d3etr import Distillation

CONFIGS = ("d3etr/d3etr_conditional_detr_digits.py", "d3etr/d3etr_detr_digits.py")
BAR = 1.25
"""The time of a distillation step as a multiple of teacher's forward pass + student's step, at most."""


def make_model(args: argparse.Namespace, cfg: DictConfig) -> DetectionTransformer:
    torch.manual_seed(0)
    return instantiate(without_pretrained(cfg)).to(args.device).train()


@torch.no_grad()
def forward(args: argparse.Namespace, model: DetectionTransformer, inputs: list[dict[str, Any]]) -> None:
    with autocast(args):
        images = model.preprocess(inputs)
        model.decode(model.encode_padded(images.tensor, model.padding_mask(images)))


def measure(args: argparse.Namespace, name: str) -> dict[str, object]:
    cfg = model_zoo.get_config(name).model
    (index,) = [i for i, method in enumerate(cfg.methods) if method["_target_"] is Distillation]
    cfg.methods[index].allow_untrained = True
    cfg.methods[index].keep_maps = args.keep_maps
    inputs = make_inputs(args, cfg.decoder.heads.num_classes)
    taught = make_model(args, cfg)
    student = make_model(args, cfg)
    del student.methods[index]
    train_step(args, taught, inputs)  # loads the teacher
    teacher = taught.methods[index].teacher.on(taught.device)
    steps: dict[str, Callable[[], None]] = {
        "student": partial(train_step, args, student, inputs),
        "teacher": partial(forward, args, teacher, inputs),
        "distillation": partial(train_step, args, taught, inputs),
    }
    peaks = {key: peak_mib(step, args.device) for key, step in steps.items()}
    times = medians(steps, args.rounds, args.device, warm_up=False)
    return {
        "config": name,
        "student step ms": times["student"],
        "teacher forward ms": times["teacher"],
        "distillation step ms": times["distillation"],
        "ratio": times["distillation"] / (times["student"] + times["teacher"]),
        "student peak MiB": peaks["student"],
        "distillation peak MiB": peaks["distillation"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_batch_arguments(parser, size=128, batch=4, boxes=(1, 5))
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), help="in the model zoo (default: digits)")
    parser.add_argument(
        "--recompute-maps", dest="keep_maps", action="store_false", help="see keep_maps of Distillation"
    )
    parser.add_argument("--rounds", type=int, default=20, help="measurements per median (default: 20)")
    args = parser.parse_args()
    check_batch_arguments(parser, args)
    torch.set_num_threads(args.threads)

    where = machine(args.device) | {"dtype": args.dtype}
    rows = [measure(args, name) for name in args.configs]
    print_table(rows)
    missed = [f"{row['config']}: {row['ratio']:.2f}, bar {BAR}" for row in rows if row["ratio"] > BAR]
    print("\n".join(["missed bars:", *missed] if missed else ["all bars met"]))
    command = shlex.join(["benchmarks/distillation_step.py", *sys.argv[1:]])
    content = {"machine": where, "command": command, "settings": vars(args), "bar": BAR, "missed": missed, "rows": rows}
    print("written:", write_json(f"distillation_step_{args.size}px_{args.device}_{args.dtype}", content))


if __name__ == "__main__":
    main()
