"""H-Deformable-DETR: Swin-L, 900 queries, 36 epochs, with stronger stochastic depth."""

from .h_deformable_detr_swin_l_36ep import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 900
