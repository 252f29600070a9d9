"""D3ETR on Conditional DETR for photographs: an EfficientNet-Lite0 learns from a Lite2. `checkpoint` has to be set.

A teacher trained with `dataset.*` has its classes in its saved config: set `teacher` to output/.../config.yaml.
"""

from detrx.d2.config import LazyCall as L
from detrx.projects.d3etr import Distillation

from ....configs.conditional_detr.conditional_detr_photos import dataloader, lr_multiplier, model, optimizer, train

# As on digits: attention is spread over fewer queries and tokens than on COCO, so that squared differences are larger.
model.methods.append(
    L(Distillation)(
        teacher="conditional_detr/conditional_detr_teacher_photos.py",
        checkpoint="",
        self_attention_weight=500.0,
        cross_attention_weight=1000.0,
    )
)
