"""A small DN-DETR for digits, on a map of stride 8: trains on two CPU cores in minutes."""

from ..common.data.digits import dataloader
from ..common.models.digits import backbone as _backbone
from ..common.models.digits import encoder_supervision as _encoder_supervision
from ..common.models.dn_detr import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import cosine
from ..common.train import train

model.backbone = _backbone
model.neck.in_features = ["res4"]
model.neck.in_channels = [160]
model.tokenizer.embed_dim = 128
model.tokenizer.position_embedding.num_feats = 64
model.encoder.layer.self_attn.num_heads = 4
model.encoder.layer.ffn.hidden_dim = 256
model.encoder.layer.dropout = 0.0
model.encoder.num_layers = 1
model.decoder.num_layers = 3
model.decoder.heads.num_classes = 10
model.query_source.num_queries = 50
model.postprocess.num_detections = 50
model.methods.append(_encoder_supervision)

train.max_iter = 3500
train.clip_grad.max_norm = 1.0
train.ema.enabled = True
train.ema.decay = 0.998
train.ema.warmup = 500
train.eval_period = 1000
train.checkpointer.period = 500
train.checkpointer.max_to_keep = 2
train.log_period = 20
optimizer.lr = 5e-4
optimizer.fused = True
optimizer.params.lr_factor_func.factors = {}
lr_multiplier = cosine(max_iter=train.max_iter, warmup_iters=100)
