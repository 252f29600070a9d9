"""Quality-aware assignment alone, on the small Deformable-DETR++ for photographs."""

from .baseline_deformable_photos import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import assignment as _assignment

model.methods.append(_assignment)
