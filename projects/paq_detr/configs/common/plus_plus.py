"""What makes a Deformable-DETR++ the DAB-DETR++ and the DN-DETR++ among PaQ-DETR's baselines."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import GroupDenoising, ReferencePosition

denoising = L(GroupDenoising)(num_groups=5, label_noise=0.2, box_noise=0.4)


def dab_detr(model):
    """DAB-Deformable-DETR: content is learned, and positions are made from the 4-d anchors before every layer."""
    model.query_source.content = "learned"
    model.query_source.embed_position = False
    model.query_source.rank_by = "max"
    model.decoder.position = L(ReferencePosition)(embed_dim="${...tokenizer.embed_dim}", scale_by_content=True)
