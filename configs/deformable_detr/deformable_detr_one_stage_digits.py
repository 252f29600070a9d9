"""A small one-stage Deformable DETR for digits, with iterative box refinement: trains on two CPU cores in minutes."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import LearnedQueries

from ..common.models.digits import encoder_supervision as _encoder_supervision
from .deformable_detr_digits import dataloader, lr_multiplier, model, optimizer, train

model.query_source = L(LearnedQueries)(num_queries=50, embed_dim="${..tokenizer.embed_dim}")
model.decoder.heads.initial_size_logit = -2.0
model.criterion.supervisions = model.criterion.supervisions[:1]
model.methods = [_encoder_supervision]
