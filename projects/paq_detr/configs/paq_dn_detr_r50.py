"""PaQ-DETR on DN-DETR: ResNet-50 C5, 300 queries, 12 epochs."""

from ....configs.dn_detr.dn_detr_r50 import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import assignment as _assignment
from .common.paq_detr import diversity as _diversity
from .common.paq_detr import patterns as _patterns

model.query_source.content = _patterns
model.methods += [_diversity, _assignment]
