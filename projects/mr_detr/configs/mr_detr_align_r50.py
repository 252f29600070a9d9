"""Mr. DETR with the losses of Align-DETR: Deformable-DETR++ with denoising, ResNet-50, 900 queries, 12 epochs."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import GIoULoss, IABCELoss, L1Loss, RankWeight
from detrx.projects.mr_detr import MrDETR

from .baseline_align_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(
    L(MrDETR)(
        num_instruction_tokens=10,
        top_k=6,
        alpha=0.2,
        threshold=0.4,
        routes=["instruction", "ffn"],
        weight=1 / 3,
        initial_size_logit=-2.0,
        losses=[
            L(IABCELoss)(weight=1.0, pair_weight=L(RankWeight)(tau=1.5)),
            L(L1Loss)(weight=5.0),
            L(GIoULoss)(weight=2.0, pair_weight=L(RankWeight)(tau=1.5)),
        ],
    )
)
