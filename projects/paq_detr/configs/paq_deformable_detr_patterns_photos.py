"""Pattern queries alone, on the small Deformable-DETR++ for photographs."""

from .baseline_deformable_photos import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import pattern_queries

pattern_queries(model)
