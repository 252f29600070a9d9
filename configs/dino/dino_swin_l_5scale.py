"""DINO: Swin-L, 5 levels from stride 4 on, 12 epochs."""

from .dino_swin_l import dataloader, lr_multiplier, model, optimizer, train

model.backbone.out_features = ["res2", "res3", "res4", "res5"]
model.neck.in_features = ["res2", "res3", "res4", "res5"]
model.neck.in_channels = [192, 384, 768, 1536]
model.tokenizer.num_levels = 5
