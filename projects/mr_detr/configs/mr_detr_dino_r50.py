"""Mr. DETR with contrastive denoising, published as "on DINO": Deformable-DETR++, ResNet-50, 900 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.projects.mr_detr import MrDETR

from .baseline_dino_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(
    L(MrDETR)(
        num_instruction_tokens=10,
        top_k=6,
        alpha=0.2,
        threshold=0.4,
        routes=["instruction", "ffn"],
        weight=1 / 3,
        initial_size_logit=-2.0,
    )
)
