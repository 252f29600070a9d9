#!/usr/bin/env python3
"""What one-to-many training costs: a training step of Deformable-DETR++ (R50) without a method and with each of them.

First table: forward, losses and backward of a batch, from the neck's feature maps on (the backbone is the same for
all), as a multiple of the time of the method's own baseline, which differs from it in the method alone. H-DETR has its
further queries, Mr. DETR++ its mixtures of experts and calibration. Second table: forward and backward of Mr. DETR's
decoder, with the queries of its three routes in one pass, and in three passes of the same modules.

The candidates take turns, so that a busy moment hits all of them. Weights are random.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from harness import machine, medians, peak_mib, print_table, write_json
from torch import Tensor, nn
from training import add_batch_arguments, autocast, check_batch_arguments, make_inputs, train_step

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer, MultiScaleTokens, Predictions, QueryGroup
from detrx.modeling.methods import Step
from detrx.modeling.targets import Targets
from detrx.ops import extension_info

HYBRID, ROUTES = "+ H-DETR branch", "+ Mr. DETR"
CONFIGS = {
    "Deformable-DETR++": "deformable_detr/deformable_detr_plus_plus_r50",
    HYBRID: "h_detr/h_deformable_detr_r50",
    "Deformable-DETR++ of Mr. DETR": "mr_detr/baseline_deformable_r50",
    ROUTES: "mr_detr/mr_detr_deformable_r50",
    "+ Mr. DETR++": "mr_detr/mr_detr_pp_deformable_r50",
}
STRIDES = (8, 16, 32, 64)
NUM_CLASSES = 80
BARS = {HYBRID: 1.35, ROUTES: 1.35}
"""The time of the step as a multiple of its baseline's, at most."""
DECODER_BAR = 1.3
"""How many times faster than three passes one has to be, at least."""


def baselines(configs: dict[str, str]) -> dict[str, str]:
    """For each name of a config, that of its baseline among them; its own if it has no method."""
    names = {config: name for name, config in configs.items()}
    return {name: names[model_zoo.baseline(config) or config] for name, config in configs.items()}


class FixedMaps(nn.Module):
    """Stands for backbone and neck: the same feature maps (B, C, size / stride, size / stride) for any images."""

    def __init__(self, batch: int, channels: int, size: int):
        super().__init__()
        self.maps = nn.ParameterList(torch.randn(batch, channels, size // s, size // s) for s in STRIDES)

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.maps)


def make_model(args: argparse.Namespace, name: str, queries: int) -> DetectionTransformer:
    torch.manual_seed(0)
    cfg = model_zoo.get_config(CONFIGS[name]).model
    if name == HYBRID:
        cfg.methods[0].num_queries = args.hybrid_queries
    cfg.backbone = cfg.neck = None
    cfg.query_source.num_queries = queries
    model = instantiate(cfg)
    model.backbone, model.neck = FixedMaps(args.batch, cfg.tokenizer.embed_dim, args.size), nn.Identity()
    return model.to(args.device).train()


def measure_steps(args: argparse.Namespace, queries: int) -> list[dict[str, object]]:
    inputs = make_inputs(args, NUM_CLASSES)
    steps: dict[str, Callable[[], None]] = {
        name: partial(train_step, args, make_model(args, name, queries), inputs) for name in CONFIGS
    }
    peaks = {name: peak_mib(step, args.device) for name, step in steps.items()}
    times = medians(steps, args.rounds, args.device, warm_up=False)
    plain = baselines(CONFIGS)
    return [
        {
            "training step": name,
            "queries": queries,
            "ms": time,
            "times plain": time / times[plain[name]],
            "peak MiB": peaks[name],
        }
        for name, time in times.items()
    ]


class DecoderRun:
    """Forward and backward of a decoder for some groups of queries, from their content and the memory."""

    def __init__(self, args: argparse.Namespace, queries: int):
        self.args = args
        self.model = make_model(args, ROUTES, queries)
        instances = [each["instances"] for each in make_inputs(args, NUM_CLASSES)]
        targets = Targets.from_instances(instances, range(args.batch), torch.device(args.device))
        with torch.no_grad():
            self.memory: MultiScaleTokens = self.model.encoder(self.model.tokenizer(self.model.backbone(None), None))
            main, predictions = self.model.query_source(self.memory)
            branches = self.model.methods[0].branches(Step(self.model, self.memory, main, predictions, targets))
        self.groups: list[QueryGroup] = [main, *(branch.group for branch in branches)]
        self.inputs = [self.memory.tokens, *(part for group in self.groups for part in (group.content, group.pos))]
        for tensor in self.inputs:
            tensor.requires_grad_()

    def forward(self, passes: Sequence[Sequence[QueryGroup]]) -> dict[str, Predictions]:
        result: dict[str, Predictions] = {}
        with autocast(self.args):
            for groups in passes:
                result |= self.model.decoder(groups, self.memory)
        return result

    def step(self, passes: Sequence[Sequence[QueryGroup]]) -> None:
        self.model.zero_grad()
        for tensor in self.inputs:
            tensor.grad = None
        predictions = self.forward(passes).values()
        sum(each.logits.float().sum() + each.boxes.sum() for each in predictions).backward()

    def one_pass(self) -> None:
        self.step([self.groups])

    def three_passes(self) -> None:
        self.step([[group] for group in self.groups])

    def check(self) -> None:
        """Both ways give the same predictions."""
        with torch.no_grad():
            together, apart = self.forward([self.groups]), self.forward([[group] for group in self.groups])
        for name, predictions in together.items():
            torch.testing.assert_close(predictions.boxes, apart[name].boxes, rtol=1e-3, atol=1e-3)


def measure_decoder(args: argparse.Namespace, queries: int) -> dict[str, object]:
    run = DecoderRun(args, queries)
    if args.dtype == "float32":
        run.check()
    times = medians({"one": run.one_pass, "three": run.three_passes}, args.rounds, args.device)
    return {
        "decoder": "three routes",
        "queries": queries,
        "one pass ms": times["one"],
        "three passes ms": times["three"],
        "times faster": times["three"] / times["one"],
    }


def missed_bars(steps: list[dict[str, Any]], decoders: list[dict[str, Any]]) -> list[str]:
    missed = [
        f"{row['training step']}, {row['queries']} queries: {row['times plain']:.2f} times plain, bar {bar}"
        for row in steps
        if (bar := BARS.get(row["training step"])) and row["times plain"] > bar
    ]
    return missed + [
        f"decoder, {row['queries']} queries: {row['times faster']:.2f} times faster, bar {DECODER_BAR}"
        for row in decoders
        if row["times faster"] < DECODER_BAR
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_batch_arguments(parser, size=640, batch=2, boxes=(10, 20))
    parser.add_argument("--queries", nargs="+", type=int, default=[300, 900])
    parser.add_argument("--hybrid-queries", type=int, default=1500, help="further queries of H-DETR (default: 1500)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per median (default: 3)")
    args = parser.parse_args()
    check_batch_arguments(parser, args)
    if args.size % STRIDES[-1]:
        parser.error(f"--size {args.size}: expected a multiple of {STRIDES[-1]}")
    torch.set_num_threads(args.threads)

    where = machine(args.device) | {"extension": extension_info(), "dtype": args.dtype}
    steps = [row for queries in args.queries for row in measure_steps(args, queries)]
    print_table(steps)
    decoders = [measure_decoder(args, queries) for queries in args.queries]
    print_table(decoders)
    missed = missed_bars(steps, decoders)
    print("\n".join(["missed bars:", *missed] if missed else ["all bars met"]))
    bars = {"times plain": BARS, "times faster": DECODER_BAR}
    command = shlex.join(["benchmarks/training_step.py", *sys.argv[1:]])
    content = {"machine": where, "command": command, "settings": vars(args), "bars": bars, "missed": missed}
    content |= {"steps": steps, "decoder": decoders}
    print("written:", write_json(f"training_step_{args.device}_{args.dtype}", content))


if __name__ == "__main__":
    main()
