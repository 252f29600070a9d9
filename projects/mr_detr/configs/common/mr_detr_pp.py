"""Mr. DETR++, on any Mr. DETR."""

from detrx.d2.config import LazyCall as L
from detrx.layers import MixtureFFN
from detrx.projects.mr_detr import ExpertLoads, ScaleAwareEncoderLayer

from .calibration import calibrate


def mr_detr_plus_plus(model, hidden_dim=1024):
    """Switch it on: experts in decoder and encoder, their loads, and calibrated scores.

    A token passes through two experts, and so through as many channels as in an FFN of twice `hidden_dim`.
    """
    experts = L(MixtureFFN)(
        embed_dim="${..embed_dim}", hidden_dim=hidden_dim, num_experts=8, top_k=2, dropout="${..dropout}"
    )
    model.decoder.layer.ffn = experts
    model.encoder.layer._target_ = ScaleAwareEncoderLayer
    model.encoder.layer.experts = experts
    model.encoder.layer.first_level = 2
    for method in model.methods:
        if "routes" in method:
            method.routes = ["instruction", "gate"]
    model.methods.append(L(ExpertLoads)(balancing_weight=0.01, period="${train.log_period}"))
    calibrate(model)
