"""Mr. DETR on the small Deformable-DETR++ for photographs."""

from detrx.d2.config import LazyCall as L
from detrx.projects.mr_detr import MrDETR

from ....configs.deformable_detr.deformable_detr_photos import dataloader, lr_multiplier, model, optimizer, train

# A weight of 1/6, as on digits: a ground truth takes up to six queries of a route.
model.methods = [
    L(MrDETR)(num_instruction_tokens=10, top_k=6, alpha=0.3, threshold=0.4, routes=["instruction", "ffn"], weight=1 / 6)
]
