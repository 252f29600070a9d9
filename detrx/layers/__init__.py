"""Building blocks that know nothing of detectors: boxes, attention, feed-forward networks, position embeddings."""

from .attention import (
    Attention,
    AttentionInputs,
    ConditionalSelfAttention,
    MultiheadAttention,
    reset_linears,
)
from .boxes import cxcywh_to_xyxy, inverse_sigmoid, iou_xyxy, xyxy_to_cxcywh
from .deformable_attention import MultiScaleDeformableAttention, SamplingInputs
from .linear import Linear
from .mlp import FFN, MLP
from .moe import ExpertLoad, Gate, MixtureFFN, MoEFFN
from .position import SinePositionEmbedding, sine_embedding
from .precision import cast_like
from .recompute import is_recomputing, run_layer
from .record import Recorded, recording
from .transfer import to_device, to_host

__all__ = [
    "FFN",
    "MLP",
    "Attention",
    "AttentionInputs",
    "ConditionalSelfAttention",
    "ExpertLoad",
    "Gate",
    "Linear",
    "MixtureFFN",
    "MoEFFN",
    "MultiScaleDeformableAttention",
    "MultiheadAttention",
    "Recorded",
    "SamplingInputs",
    "SinePositionEmbedding",
    "cast_like",
    "cxcywh_to_xyxy",
    "inverse_sigmoid",
    "iou_xyxy",
    "is_recomputing",
    "recording",
    "reset_linears",
    "run_layer",
    "sine_embedding",
    "to_device",
    "to_host",
    "xyxy_to_cxcywh",
]
