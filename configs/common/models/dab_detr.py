"""DAB-DETR (arXiv 2201.12329), without a backbone. Sizes are set as in `detr.py`."""

from torch import nn

from detrx.d2.config import LazyCall as L
from detrx.layers import MLP
from detrx.modeling import AnchorPosition, AnchorQueries

from .conditional_detr import model

model.tokenizer.position_embedding.temperature = 20.0
model.encoder.layer.dropout = 0.0
model.encoder.layer.ffn.activation = L(nn.PReLU)()
model.encoder.pos_scale = L(MLP)(
    input_dim="${...tokenizer.embed_dim}",
    hidden_dim="${...tokenizer.embed_dim}",
    output_dim="${...tokenizer.embed_dim}",
    num_layers=2,
)
model.query_source = L(AnchorQueries)(num_queries=300, embed_dim="${..tokenizer.embed_dim}", freeze_centres=True)
model.decoder.layer.ffn.activation = L(nn.PReLU)()
model.decoder.position = L(AnchorPosition)(embed_dim="${...tokenizer.embed_dim}")
model.decoder.refine_boxes = True
model.decoder.look_forward_twice = True
model.criterion.supervisions[0].losses[0].weight = 1.0
