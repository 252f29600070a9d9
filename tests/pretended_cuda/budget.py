"""How often a step of each digits config makes the host wait for the device: allowed, and as it is.

    python -m tests.pretended_cuda.budget [CONFIG ...] [--places] [--side PIXELS]

prints the table of these, or of some configs, with the places on request.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.d2.utils import EventStorage
from detrx.engine.config import without_pretrained
from tests.modeling.small import make_input, with_boxes

from .harness import Waits, install, modes, waits

COSTS = 1
"""Training: the costs of all assignments of the step, and the numbers of pairs chosen on the device, in one copy. The
Hungarian algorithm runs on the host. Pairs go back in pinned memory."""
AREAS = 1
"""Inference: how many detections of each image have an area. Whoever wants them on the host waits once more."""
ROUTERS = 3
"""QR-DETR: how many queries pass, once for each router, as there is no fixed capacity."""

BUDGET: dict[str, tuple[int, int]] = {
    "align_detr/align_detr_digits.py": (COSTS, AREAS),
    "conditional_detr/conditional_detr_digits.py": (COSTS, AREAS),
    "conditional_detr/conditional_detr_student_digits.py": (COSTS, AREAS),
    "conditional_detr/conditional_detr_teacher_digits.py": (COSTS, AREAS),
    "d3etr/d3etr_conditional_detr_digits.py": (COSTS, AREAS),
    "d3etr/d3etr_detr_digits.py": (COSTS, AREAS),
    "d3etr/d3etr_mgd_conditional_detr_digits.py": (COSTS, AREAS),
    "d3etr/defeat_conditional_detr_digits.py": (COSTS, AREAS),
    "d3etr/fgd_conditional_detr_digits.py": (COSTS, AREAS),
    "d3etr/fitnet_conditional_detr_digits.py": (COSTS, AREAS),
    "d3etr/mgd_conditional_detr_digits.py": (COSTS, AREAS),
    "dab_detr/dab_detr_digits.py": (COSTS, AREAS),
    "deformable_detr/deformable_detr_digits.py": (COSTS, AREAS),
    "deformable_detr/deformable_detr_one_stage_digits.py": (COSTS, AREAS),
    "detr/detr_digits.py": (COSTS, AREAS),
    "detr/detr_student_digits.py": (COSTS, AREAS),
    "detr/detr_teacher_digits.py": (COSTS, AREAS),
    "dino/dino_digits.py": (COSTS, AREAS),
    "dn_detr/dn_detr_digits.py": (COSTS, AREAS),
    "h_detr/h_deformable_detr_digits.py": (COSTS, AREAS),
    "h_detr/h_deformable_detr_epoch_digits.py": (COSTS, AREAS),
    "h_detr/h_deformable_detr_layer_digits.py": (COSTS, AREAS),
    "mr_detr/mr_detr_align_digits.py": (COSTS, AREAS),
    "mr_detr/mr_detr_deformable_calibrated_digits.py": (COSTS, AREAS),
    "mr_detr/mr_detr_deformable_decoder_experts_digits.py": (COSTS, AREAS),
    "mr_detr/mr_detr_deformable_digits.py": (COSTS, AREAS),
    "mr_detr/mr_detr_deformable_encoder_experts_digits.py": (COSTS, AREAS),
    "mr_detr/mr_detr_dino_digits.py": (COSTS, AREAS),
    # The counts of the experts stay on the device where there is a grouped GEMM: bfloat16, from compute capability 9.0.
    "mr_detr/mr_detr_pp_align_digits.py": (COSTS, AREAS),
    "mr_detr/mr_detr_pp_deformable_digits.py": (COSTS, AREAS),
    "mr_detr/mr_detr_pp_dino_digits.py": (COSTS, AREAS),
    "paq_detr/baseline_dab_detr_digits.py": (COSTS, AREAS),
    "paq_detr/baseline_deformable_digits.py": (COSTS, AREAS),
    "paq_detr/baseline_dn_detr_digits.py": (COSTS, AREAS),
    "paq_detr/paq_dab_detr_digits.py": (COSTS, AREAS),
    "paq_detr/paq_deformable_detr_assignment_digits.py": (COSTS, AREAS),
    "paq_detr/paq_deformable_detr_digits.py": (COSTS, AREAS),
    "paq_detr/paq_deformable_detr_patterns_digits.py": (COSTS, AREAS),
    "paq_detr/paq_dino_digits.py": (COSTS, AREAS),
    "paq_detr/paq_dn_detr_digits.py": (COSTS, AREAS),
    "qr_detr/qr_conditional_detr_digits.py": (COSTS + ROUTERS, AREAS + ROUTERS),
    "qr_detr/qr_dab_detr_digits.py": (COSTS + ROUTERS, AREAS + ROUTERS),
    "qr_detr/qr_deformable_detr_digits.py": (COSTS + ROUTERS, AREAS + ROUTERS),
}
"""Waits of a training step (forward and backward pass) and of an inference, in bfloat16, of a padded batch."""


def digits_configs() -> list[str]:
    return [name for name in model_zoo.list_models("*") if name.endswith("_digits.py")]


def build(name: str) -> nn.Module:
    """The model of a config on the device, with random weights; those of a teacher, too."""
    cfg = model_zoo.get_config(name).model
    for method in cfg.get("methods", []):
        if "Distillation" in str(method._target_):
            method.allow_untrained = True
    torch.manual_seed(0)
    return instantiate(without_pretrained(cfg)).to("cuda")


def make_batch(*counts: int, side: int = 128) -> list[dict]:
    """Images of two sizes with so many boxes; 128 pixels are enough for the queries of all digits configs."""
    return [with_boxes(make_input(side, side - 32 * (i % 2)), count) for i, count in enumerate(counts)]


def training_waits(model: nn.Module, batch: list[dict]) -> tuple[Waits, dict[str, torch.Tensor]]:
    """Of the second step, as some things are done once; with its losses. Gradients are those of this step."""
    model.train()
    with EventStorage(1), torch.autocast("cuda", torch.bfloat16):
        model(batch)
        model.zero_grad()
        with waits() as found:
            losses = model(batch)
            sum(losses.values()).backward()
    return found, losses


@torch.no_grad()
def inference_waits(model: nn.Module, batch: list[dict]) -> tuple[Waits, list[dict]]:
    """With the detections."""
    model.eval()
    images = [{"image": each["image"], "height": 256, "width": 200} for each in batch]
    with torch.autocast("cuda", torch.bfloat16), waits() as found:
        outputs = model(images)
    return found, outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="default: all digits configs")
    parser.add_argument("--places", action="store_true", help="print where the host waits")
    parser.add_argument("--side", type=int, default=128, help="pixels of the images; more queries need larger ones")
    args = parser.parse_args()
    install()
    width = max(map(len, args.configs or digits_configs()))
    print(f"{'config':{width}}  training  inference")
    with modes():
        for name in args.configs or digits_configs():
            model, batch = build(name), make_batch(3, 1, side=args.side)
            training, inference = training_waits(model, batch)[0], inference_waits(model, batch)[0]
            print(f"{name:{width}}  {training.count:8}  {inference.count:9}", flush=True)
            if args.places:
                print(f"{training}\n{inference}")


if __name__ == "__main__":
    main()
