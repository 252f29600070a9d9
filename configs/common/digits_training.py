"""Training of the small detectors on digits: minutes on two CPU cores. Each sets its learning rate."""

from .data.digits import dataloader
from .optim import AdamW as optimizer
from .schedule import cosine
from .train import train

train.max_iter = 3500
train.clip_grad.max_norm = 1.0
train.ema.enabled = True
train.ema.decay = 0.998
train.eval_period = 1000
train.checkpointer.period = 500
train.checkpointer.max_to_keep = 2
train.log_period = 20
optimizer.params.lr_factor_func.factors = {}
lr_multiplier = cosine(max_iter=train.max_iter, warmup_iters=100)
