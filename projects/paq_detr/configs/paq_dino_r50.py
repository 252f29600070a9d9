"""PaQ-DETR on DINO: ResNet-50, 4 levels, 900 queries, 12 epochs."""

from ....configs.dino.dino_r50 import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import assignment as _assignment
from .common.paq_detr import diversity as _diversity
from .common.paq_detr import patterns as _patterns

model.query_source.content = _patterns
model.methods += [_diversity, _assignment]
