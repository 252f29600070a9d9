"""Pattern queries alone, on the small Deformable-DETR++ for digits."""

from .baseline_deformable_digits import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import pattern_queries

pattern_queries(model)
