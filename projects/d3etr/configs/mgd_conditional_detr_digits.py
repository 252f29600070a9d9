"""MGD on Conditional DETR for large digits: the encoder learns from that of a detector with a wide backbone."""

from detrx.d2.config import LazyCall as L
from detrx.projects.d3etr import MGD, EncoderDistillation

from ....configs.conditional_detr.conditional_detr_student_digits import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.methods.append(
    L(EncoderDistillation)(
        loss=L(MGD)(embed_dim="${....tokenizer.embed_dim}"),
        teacher="conditional_detr/conditional_detr_teacher_digits.py",
        checkpoint="",
    )
)
