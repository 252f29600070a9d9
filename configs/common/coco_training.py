"""Training of the detectors on COCO: 12 epochs of 7500 iterations of 16 images."""

from .data.coco import dataloader
from .optim import AdamW as optimizer
from .schedule import lr_multiplier_12ep as lr_multiplier
from .train import train
