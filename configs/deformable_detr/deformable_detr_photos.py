"""A small Deformable-DETR++ for photographs, on a pretrained EfficientNet-Lite0: trains on a CPU in half an hour.

docs/custom_data.md uses it for photographs of your own.
"""

from ..common.models.photos import for_photos
from ..common.photos_training import dataloader, lr_multiplier, optimizer, train
from .deformable_detr_digits import model

for_photos(model)
