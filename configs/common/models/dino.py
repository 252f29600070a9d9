"""DINO (arXiv 2203.03605), without a backbone: two-stage Deformable DETR with learned query content, positions computed
from the references, look forward twice and contrastive denoising.

Sizes are set as in deformable_detr.py.
"""

from torch import nn

from detrx.d2.config import LazyCall as L
from detrx.modeling import ContrastiveDenoising, EncoderProposals, ReferencePosition

from .deformable_detr import model, supervision

model.encoder.layer.ffn.hidden_dim = 2048
model.encoder.layer.dropout = 0.0
model.query_source = L(EncoderProposals)(
    num_queries=900,
    embed_dim="${..tokenizer.embed_dim}",
    num_classes="${..decoder.heads.num_classes}",
    content="learned",
    embed_position=False,
    rank_by="max",
    supervise="chosen",
)
model.decoder.position = L(ReferencePosition)(embed_dim="${...tokenizer.embed_dim}")
model.decoder.norm = L(nn.LayerNorm)(normalized_shape="${...tokenizer.embed_dim}")
model.decoder.refine_boxes = True
model.decoder.look_forward_twice = True
model.decoder.heads.shared = False
model.decoder.heads.initial_size_logit = 0.0
model.criterion.supervisions.append(supervision(group="encoder", suffix="_enc"))
model.methods = [L(ContrastiveDenoising)(num_queries=100, label_noise=0.5, box_noise=1.0)]
