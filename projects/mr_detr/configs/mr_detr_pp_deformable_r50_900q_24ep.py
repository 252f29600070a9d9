"""Mr. DETR++ on Deformable-DETR++: ResNet-50, 900 queries, 24 epochs."""

from ....configs.common.schedule import lr_multiplier_24ep as lr_multiplier
from .mr_detr_pp_deformable_r50_900q import dataloader, model, optimizer, train

train.max_iter = 180000
