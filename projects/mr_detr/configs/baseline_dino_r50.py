"""What the published code of Mr. DETR calls DINO: Deformable-DETR++ with contrastive denoising, 900 queries, 12 epochs.

The baseline of `mr_detr_dino_r50`. The DINO of its paper is `dino/dino_r50`.
"""

from detrx.d2.config import LazyCall as L
from detrx.modeling import ContrastiveDenoising

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 900
model.methods = [L(ContrastiveDenoising)(num_queries=100, label_noise=0.5, box_noise=0.4)]
