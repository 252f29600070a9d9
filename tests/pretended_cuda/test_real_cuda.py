"""The budget on a real GPU, as far as CUDA itself tells when it makes the host wait."""

import warnings

import pytest
import torch

from detrx.d2.utils import EventStorage
from detrx.ops import has_kernel

from .budget import BUDGET, build, make_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.skipif(not has_kernel("moe_route", "cuda"), reason="no compiled CUDA kernel"),
]


@pytest.mark.parametrize(
    "name",
    [
        "align_detr/align_detr_digits.py",
        "d3etr/d3etr_detr_digits.py",
        "mr_detr/mr_detr_pp_dino_digits.py",
        "paq_detr/paq_dn_detr_digits.py",
        "qr_detr/qr_deformable_detr_digits.py",
    ],
)
def test_waits_of_a_step(name: str):
    if "mr_detr_pp" in name and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("without a grouped GEMM the host reads the counts of the experts")
    model, batch = build(name).train(), make_batch(3, 1)

    def train() -> None:
        with EventStorage(1), torch.autocast("cuda", torch.bfloat16):
            losses = model(batch)
        sum(losses.values()).backward()

    @torch.no_grad()
    def infer() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            model([{"image": each["image"]} for each in batch])

    for mode, step, allowed in ((True, train, BUDGET[name][0]), (False, infer, BUDGET[name][1])):
        model.train(mode)
        step()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]
        assert len(found) == allowed, f"{'training' if mode else 'inference'} waits at {found}, allowed are {allowed}"
