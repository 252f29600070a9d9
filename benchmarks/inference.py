#!/usr/bin/env python3
"""Inference of Deformable DETR (R50, refined, two-stage) against transformers' DeformableDetr with the same weights.

Both get the same normalised image without padding, and both do all of it: backbone, encoder, decoder, heads. Weights
are random; `max_difference` is over the scores and boxes (in [0, 1]) of the best 100 (query, class) pairs.
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from harness import machine, medians, print_table, write_json
from torch import Tensor, nn

from detrx import model_zoo
from detrx.checkpoint import convert_checkpoint
from detrx.d2.config import instantiate
from detrx.modeling import DetectionTransformer
from detrx.ops import extension_info

SIZES = [(800, 1066), (800, 1333), (480, 640)]
DETECTIONS = 100


def build_reference(seed: int) -> nn.Module:
    """transformers' model; random weights everywhere, so that scores are distinct."""
    torch.manual_seed(seed)
    backbone = transformers.TimmBackboneConfig(
        backbone="resnet50", out_indices=[2, 3, 4], use_pretrained_backbone=False, features_only=True
    )
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone, two_stage=True, with_box_refine=True, num_labels=80
    )
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "class_embed" in name and parameter.ndim > 1:
                parameter.normal_(std=0.1)
            elif "sampling_offsets.weight" in name or "attention_weights.weight" in name or "bbox_embed" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def build_ours(reference: nn.Module) -> DetectionTransformer:
    cfg = model_zoo.get_config("deformable_detr/deformable_detr_two_stage_r50.py").model
    cfg.backbone.pretrained = False
    cfg.decoder.inverse_sigmoid_eps = 1e-5
    model = instantiate(cfg)
    weights, _ = convert_checkpoint(reference.state_dict(), model, format="huggingface")
    model.load_state_dict(weights)
    return model.eval()


def best(logits: Tensor, boxes: Tensor) -> Tensor:
    """(N, K) and (N, 4) -> (DETECTIONS, 6) score, class and box of the best pairs."""
    scores, index = logits.sigmoid().flatten().topk(DETECTIONS)
    classes, query = index % logits.shape[-1], index // logits.shape[-1]
    return torch.cat([scores[:, None], classes[:, None].float(), boxes[query]], dim=1)


def compare(reference: nn.Module, model: DetectionTransformer, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    coarse = torch.randn(1, 3, size[0] // 16, size[1] // 16)
    image = F.interpolate(coarse, size, mode="bilinear")
    mask = torch.ones(1, *size, dtype=torch.long)
    theirs, ours = reference(pixel_values=image, pixel_mask=mask), model.predict(image, None)["main"]
    expected, found = best(theirs.logits[0], theirs.pred_boxes[0]), best(ours.logits[-1, 0], ours.boxes[-1, 0])
    times = medians(
        {
            "transformers": lambda: reference(pixel_values=image, pixel_mask=mask),
            "detrx": lambda: model.predict(image, None),
        },
        rounds,
        "cpu",
    )
    return {
        "image": f"{size[0]}x{size[1]}",
        "transformers ms": times["transformers"],
        "detrx ms": times["detrx"],
        "times faster": times["transformers"] / times["detrx"],
        "max_difference": (found - expected).abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        reference = build_reference(args.seed)
        model = build_ours(reference)
        rows = [compare(reference, model, size, args.rounds) for size in SIZES]
    print_table([{**row, "max_difference": f"{row['max_difference']:.1e}"} for row in rows])
    versions = {"transformers": transformers.__version__, "extension": extension_info()}
    path = write_json("inference_cpu_float32", {**machine("cpu"), **versions, "seed": args.seed, "rows": rows})
    print(f"figures: {path}")


if __name__ == "__main__":
    main()
