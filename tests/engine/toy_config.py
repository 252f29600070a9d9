from fvcore.common.param_scheduler import CosineParamScheduler
from toy_detector import ToyEvaluator, ToyMapper, ToyModel, toy_dataset

from detrx.d2.config import LazyCall as L
from detrx.d2.solver import WarmupParamScheduler
from detrx.data import build_test_loader, build_train_loader
from detrx.model_zoo import get_config

train = get_config("common/train.py").train
train.device = "cpu"
train.max_iter = 24
train.seed = 1
train.log_period = 2
train.eval_period = 10
train.checkpointer.period = 5
train.checkpointer.max_to_keep = 2
train.clip_grad.max_norm = 1.0
train.ema.enabled = True
train.ema.decay = 0.9
train.ema.warmup = 5

optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 1e-2

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=0.2,
    warmup_factor=0.1,
)

model = L(ToyModel)(width=16)

dataloader = {
    "train": L(build_train_loader)(
        dataset=L(toy_dataset)(size=33),
        mapper=L(ToyMapper)(noise=0.1),
        total_batch_size=4,
        num_workers=0,
        seed="${train.seed}",
    ),
    "test": L(build_test_loader)(dataset=L(toy_dataset)(size=13), mapper=L(ToyMapper)(noise=0.0)),
    "evaluator": L(ToyEvaluator)(),
}
