"""Deformable-DETR++: two-stage with mixed query selection, look forward twice, no dropout and a wider FFN."""

from .deformable_detr_two_stage_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source.content = "learned"
model.decoder.look_forward_twice = True
model.encoder.layer.dropout = 0.0
model.encoder.layer.ffn.hidden_dim = 2048
