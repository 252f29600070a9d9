"""D3ETR with MGD on Conditional DETR, 12 epochs of COCO: decoder and encoder learn from the same teacher."""

from detrx.d2.config import LazyCall as L
from detrx.projects.d3etr import MGD, EncoderDistillation

from .d3etr_conditional_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(EncoderDistillation)(loss=L(MGD)(embed_dim="${....tokenizer.embed_dim}")))
