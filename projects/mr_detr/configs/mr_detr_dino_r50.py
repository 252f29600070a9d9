"""Mr. DETR with contrastive denoising, published as "on DINO": Deformable-DETR++, ResNet-50, 900 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import ContrastiveDenoising, HungarianMatcher, MatchingCost
from detrx.projects.mr_detr import MrDETR

from .mr_detr_deformable_r50 import dataloader, lr_multiplier, model, optimizer, train

model.query_source.num_queries = 900
_encoder = model.criterion.supervisions[1]
_encoder.assigner = L(HungarianMatcher)(cost=L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0))
_encoder.weight = 1.0
model.methods = [
    L(ContrastiveDenoising)(num_queries=100, label_noise=0.5, box_noise=0.4),
    L(MrDETR)(
        num_instruction_tokens=10,
        top_k=6,
        alpha=0.2,
        threshold=0.4,
        routes=["instruction", "ffn"],
        weight=1 / 3,
        initial_size_logit=-2.0,
    ),
]
