"""The small Deformable-DETR++ for digits, with learned content of its queries as on COCO."""

from ....configs.deformable_detr.deformable_detr_digits import dataloader, lr_multiplier, model, optimizer, train

model.query_source.content = "learned"
