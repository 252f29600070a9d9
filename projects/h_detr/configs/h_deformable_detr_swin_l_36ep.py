"""H-Deformable-DETR: Swin-L, 300 queries, 36 epochs, with stronger stochastic depth."""

from ....configs.common.schedule import lr_multiplier_36ep as lr_multiplier
from .h_deformable_detr_swin_l import dataloader, model, optimizer, train

model.backbone.model_args.drop_path_rate = 0.5
train.max_iter = 270000
