"""Mr. DETR++ on the small Deformable-DETR++ for photographs."""

from .common.mr_detr_pp import mr_detr_plus_plus
from .mr_detr_deformable_photos import dataloader, lr_multiplier, model, optimizer, train

mr_detr_plus_plus(model, hidden_dim=128)
