"""PaQ-DETR on the small DINO for digits."""

from ....configs.dino.dino_digits import dataloader, lr_multiplier, model, optimizer, train
from .common.paq_detr import assignment as _assignment
from .common.paq_detr import diversity as _diversity
from .common.paq_detr import patterns as _patterns

model.query_source.content = _patterns
model.methods += [_diversity, _assignment]
