"""Mr. DETR++ on Deformable-DETR++: ResNet-50, 900 queries, 12 epochs."""

from .mr_detr_pp_deformable_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 900
