"""Mr. DETR on Deformable-DETR++: ResNet-50, 300 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.projects.mr_detr import MrDETR

from .baseline_deformable_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods = [
    L(MrDETR)(
        num_instruction_tokens=10,
        top_k=6,
        alpha=0.3,
        threshold=0.4,
        routes=["instruction", "ffn"],
        initial_size_logit=-2.0,
    )
]
