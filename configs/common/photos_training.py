"""Training of the small detectors on photographs, from a pretrained backbone: half an hour on one CPU core."""

from .data.photos import dataloader
from .digits_training import optimizer, train
from .schedule import cosine

train.max_iter = 3000
optimizer.lr = 4e-4
optimizer.params.lr_factor_func.factors = {"backbone": 0.25}
lr_multiplier = cosine(max_iter=train.max_iter, warmup_iters=100)
