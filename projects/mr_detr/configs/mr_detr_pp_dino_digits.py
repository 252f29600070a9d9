"""Mr. DETR++ on the small DINO for digits, beside its denoising."""

from detrx.projects.mr_detr import ScaleAwareEncoderLayer

from .common.calibration import calibrate
from .common.mixtures import decoder_ffn as _decoder_ffn
from .common.mixtures import encoder_experts as _encoder_experts
from .common.mixtures import expert_loads as _expert_loads
from .mr_detr_dino_digits import dataloader, lr_multiplier, model, optimizer, train

model.decoder.layer.ffn = _decoder_ffn
model.encoder.layer._target_ = ScaleAwareEncoderLayer
model.encoder.layer.experts = _encoder_experts
model.encoder.layer.first_level = 2
model.methods[1].routes = ["instruction", "gate"]
model.methods.append(_expert_loads)
model.decoder.layer.ffn.hidden_dim = 128
model.encoder.layer.experts.hidden_dim = 128

calibrate(model)
