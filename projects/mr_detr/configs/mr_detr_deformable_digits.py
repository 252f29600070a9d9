"""Mr. DETR on the small Deformable-DETR++ for digits."""

from detrx.d2.config import LazyCall as L
from detrx.projects.mr_detr import MrDETR

from ....configs.deformable_detr.deformable_detr_digits import dataloader, lr_multiplier, model, optimizer, train

# A ground truth takes up to six queries of a route: with a weight of 1 the auxiliary routes would drown the main one.
model.methods = [
    L(MrDETR)(num_instruction_tokens=10, top_k=6, alpha=0.3, threshold=0.4, routes=["instruction", "ffn"], weight=1 / 6)
]
