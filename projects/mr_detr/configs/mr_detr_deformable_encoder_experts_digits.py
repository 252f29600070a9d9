"""The scale-aware experts of Mr. DETR++ in the encoder, on the small Mr. DETR on Deformable-DETR++ for digits."""

from .common.mr_detr_pp import encoder_experts
from .mr_detr_deformable_digits import dataloader, lr_multiplier, model, optimizer, train

encoder_experts(model, hidden_dim=128)
