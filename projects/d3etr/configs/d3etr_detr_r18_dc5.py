"""D3ETR on DETR: ResNet-101 DC5 teaches ResNet-18 DC5, 12 epochs of COCO. `checkpoint` has to be set."""

from detrx.d2.config import LazyCall as L
from detrx.projects.d3etr import Distillation

from ....configs.detr.detr_r18_dc5 import dataloader, lr_multiplier, model, optimizer, train

model.methods.append(L(Distillation)(teacher="detr/detr_r101_dc5_50ep.py", checkpoint=""))
