"""D3ETR on Conditional DETR: ResNet-101 C5 teaches ResNet-18 C5, 50 epochs of COCO. `checkpoint` has to be set."""

from detrx.d2.config import LazyCall as L
from detrx.projects.d3etr import Distillation

from ....configs.conditional_detr.conditional_detr_r18_50ep import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(Distillation)(teacher="conditional_detr/conditional_detr_r101_50ep.py", checkpoint=""))
