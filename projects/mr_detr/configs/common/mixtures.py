"""Parts of Mr. DETR++: experts, of which a token passes through as many channels as in the FFN of 2048 they replace."""

from detrx.d2.config import LazyCall as L
from detrx.layers import MixtureFFN
from detrx.projects.mr_detr import ExpertLoads

decoder_ffn = L(MixtureFFN)(embed_dim="${..embed_dim}", hidden_dim=1024, num_experts=8, top_k=2, dropout="${..dropout}")
encoder_experts = L(MixtureFFN)(
    embed_dim="${..embed_dim}", hidden_dim=1024, num_experts=8, top_k=2, dropout="${..dropout}"
)
expert_loads = L(ExpertLoads)(balancing_weight=0.01, period="${train.log_period}")
