"""Mr. DETR on the small Align-DETR for digits, beside its denoising."""

from detrx.d2.config import LazyCall as L
from detrx.projects.mr_detr import MrDETR

from ....configs.align_detr.align_detr_digits import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(
    L(MrDETR)(num_instruction_tokens=10, top_k=6, alpha=0.2, threshold=0.4, routes=["instruction", "ffn"], weight=1 / 3)
)
