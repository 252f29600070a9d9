#!/usr/bin/env python3
"""QR-DETR: the decoder of Deformable-DETR++ with routers that let part of the queries pass, against the plain decoder.

Inference of all six layers with their heads, for one image. The routers are fixed; the same part passes each of them.
"EEQR_F" wraps whole layers, "EEQR" whole layers, self-attention and cross-attention by turns.
"""

import argparse
import copy
import math
from functools import partial

import torch
from harness import machine, medians, print_table, write_json

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer, MultiScaleTokens, QueryGroup
from detrx.ops import extension_info
from detrx.projects.qr_detr import FixedRouter, QueryRouting

CONFIG = "deformable_detr/deformable_detr_plus_plus_r50.py"
SIZES = ["800x1333", "640x640"]
STRIDES = (8, 16, 32, 64)
SCHEMES = {"EEQR_F": "full", "EEQR": "eeqr"}


def make_detector() -> DetectionTransformer:
    cfg = model_zoo.get_config(CONFIG).model
    cfg.backbone.pretrained = False
    return instantiate(cfg).eval()


def make_inputs(model: DetectionTransformer, size: str, queries: int) -> tuple[QueryGroup, MultiScaleTokens]:
    """Random queries, and random tokens of an image of `size`."""
    height, width = (int(side) for side in size.split("x")) if "x" in size else (int(size),) * 2
    channels = model.tokenizer.level_embed.shape[-1]
    maps = [torch.randn(1, channels, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    content, pos = (torch.randn(1, queries, channels) for _ in range(2))
    reference = torch.cat([torch.rand(1, queries, 2), torch.rand(1, queries, 2) * 0.3 + 0.02], dim=-1)
    return QueryGroup("main", content, pos, reference), model.tokenizer(maps, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=SIZES, metavar="HxW", help=f"default: {' '.join(SIZES)}")
    parser.add_argument("--queries", nargs="+", type=int, default=[300, 900])
    parser.add_argument("--passing", type=float, default=0.5, help="part of the queries that passes (default: 0.5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=15, help="measurements per median (default: 15)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    plain = make_detector()
    decoders = {"plain": plain.decoder}
    for name, scheme in SCHEMES.items():
        model = copy.deepcopy(plain)
        QueryRouting(scheme, router=FixedRouter(args.passing)).attach(model)
        decoders[name] = model.decoder.eval()
    rows = []
    with torch.no_grad():
        for size in args.size:
            for queries in args.queries:
                group, memory = make_inputs(plain, size, queries)
                calls = {name: partial(decoder, [group], memory) for name, decoder in decoders.items()}
                times = medians(calls, args.rounds, "cpu")
                row: dict[str, object] = {"image": size, "queries": queries}
                row |= {f"{name} ms": time for name, time in times.items()}
                rows.append(row | {f"{name}/plain": times[name] / times["plain"] for name in SCHEMES})
    print_table(rows)
    where = machine("cpu") | {"extension": extension_info(), "dtype": "float32"}
    content = {"machine": where, "config": CONFIG, "passing": args.passing, "rounds": args.rounds, "decoder": rows}
    print("written:", write_json("routed_decoder_cpu_float32", content))


if __name__ == "__main__":
    main()
