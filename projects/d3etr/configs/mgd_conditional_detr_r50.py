"""MGD on Conditional DETR, 12 epochs of COCO: ResNet-101 teaches the encoder. `checkpoint` has to be set."""

from detrx.d2.config import LazyCall as L
from detrx.projects.d3etr import MGD, EncoderDistillation

from ....configs.conditional_detr.conditional_detr_r50 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(
    L(EncoderDistillation)(
        loss=L(MGD)(embed_dim="${....tokenizer.embed_dim}"),
        teacher="conditional_detr/conditional_detr_r101_50ep.py",
        checkpoint="",
    )
)
