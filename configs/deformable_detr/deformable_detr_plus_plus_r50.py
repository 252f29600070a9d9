"""Deformable-DETR++: two-stage with mixed query selection, look forward twice, no dropout and a wider FFN.

As the authors of H-DETR train it; the class losses weigh twice as much as in `deformable_detr_two_stage_r50`.
"""

from .deformable_detr_two_stage_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source.content = "learned"
model.decoder.look_forward_twice = True
model.encoder.layer.dropout = 0.0
model.encoder.layer.ffn.hidden_dim = 2048
for _supervision in model.criterion.supervisions:
    _supervision.losses[0].weight = 2.0
