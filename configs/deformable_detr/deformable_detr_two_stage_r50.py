"""Two-stage Deformable DETR: the encoder's best 300 proposals become the queries."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import EncoderProposals

from ..common.models.deformable_detr import supervision
from .deformable_detr_refine_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source = L(EncoderProposals)(
    num_queries=300,
    embed_dim="${..tokenizer.embed_dim}",
    num_classes="${..decoder.heads.num_classes}",
    content="position",
    rank_by="first_class",
)
model.decoder.heads.initial_size_logit = 0.0
model.criterion.supervisions.append(supervision(group="encoder", suffix="_enc", class_agnostic=True))
