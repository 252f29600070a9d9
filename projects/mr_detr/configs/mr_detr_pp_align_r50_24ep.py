"""Mr. DETR++ on Align-DETR (Deformable-DETR++ with denoising): ResNet-50, 900 queries, 24 epochs."""

from ....configs.common.schedule import lr_multiplier_24ep as lr_multiplier
from .mr_detr_pp_align_r50 import dataloader, model, optimizer, train

train.max_iter = 180000
