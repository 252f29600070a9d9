"""DN-DETR (arXiv 2203.01305), without a backbone: DAB-DETR with denoising. Sizes are set as in `detr.py`."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import AnchorQueries, GroupDenoising, LabelEmbedding

from .dab_detr import model

model.query_source = L(AnchorQueries)(
    num_queries=300,
    embed_dim="${..tokenizer.embed_dim}",
    freeze_centres=False,
    label_embedding=L(LabelEmbedding)(
        num_classes="${...decoder.heads.num_classes}",
        embed_dim="${...tokenizer.embed_dim}",
    ),
)
model.methods = [L(GroupDenoising)(num_groups=5, label_noise=0.2, box_noise=0.4)]
