"""H-Deformable-DETR: Swin-L, 900 queries, 12 epochs."""

from .h_deformable_detr_swin_l import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 900
