"""The small Deformable-DETR++ for photographs, with learned content of its queries as on COCO."""

from ....configs.deformable_detr.deformable_detr_photos import dataloader, lr_multiplier, model, optimizer, train

model.query_source.content = "learned"
