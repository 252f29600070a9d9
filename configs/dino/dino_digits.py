"""A small DINO for digits: trains on two CPU cores in minutes."""

from torch import nn

from detrx.d2.config import LazyCall as L
from detrx.modeling import ContrastiveDenoising, ReferencePosition

from ..deformable_detr.deformable_detr_digits import dataloader, lr_multiplier, model, optimizer, train

model.query_source.content = "learned"
model.query_source.embed_position = False
model.decoder.position = L(ReferencePosition)(embed_dim="${...tokenizer.embed_dim}")
model.decoder.norm = L(nn.LayerNorm)(normalized_shape="${...tokenizer.embed_dim}")
model.methods = [L(ContrastiveDenoising)(num_queries=20, label_noise=0.5, box_noise=1.0)]
