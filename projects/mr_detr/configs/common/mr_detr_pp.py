"""Mr. DETR++, on any Mr. DETR: all of it, or its mixtures of experts one by one.

A token passes through two experts, and so through as many channels as in an FFN of twice `hidden_dim`.
"""

from detrx.d2.config import LazyCall as L
from detrx.layers import MixtureFFN
from detrx.projects.mr_detr import ExpertLoads, ScaleAwareEncoderLayer

from .calibration import calibrate

_loads = L(ExpertLoads)(balancing_weight=0.01, period="${train.log_period}")


def _experts(hidden_dim):
    return L(MixtureFFN)(
        embed_dim="${..embed_dim}", hidden_dim=hidden_dim, num_experts=8, top_k=2, dropout="${..dropout}"
    )


def decoder_experts(model, hidden_dim=1024):
    """Route-aware experts in the decoder, and their loads; the route with its own FFN gets a gate instead."""
    model.decoder.layer.ffn = _experts(hidden_dim)
    for method in model.methods:
        if "routes" in method:
            method.routes = ["instruction", "gate"]
    model.methods.append(_loads)


def encoder_experts(model, hidden_dim=1024):
    """Scale-aware experts in the encoder, and their loads."""
    model.encoder.layer._target_ = ScaleAwareEncoderLayer
    model.encoder.layer.experts = _experts(hidden_dim)
    model.encoder.layer.first_level = 2
    model.methods.append(_loads)


def mr_detr_plus_plus(model, hidden_dim=1024):
    """Experts in decoder and encoder, their loads, and calibrated scores."""
    decoder_experts(model, hidden_dim)
    encoder_experts(model, hidden_dim)
    model.methods.pop()  # one method logs the loads of both
    calibrate(model)
