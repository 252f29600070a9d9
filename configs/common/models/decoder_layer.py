"""The decoder layer that DETR and Deformable DETR share."""

from detrx.d2.config import LazyCall as L
from detrx.layers import FFN, MultiheadAttention
from detrx.modeling import DecoderLayer


def decoder_layer(cross_attn):
    """`model.decoder.layer` with a cross-attention, of the sizes of `model.encoder.layer`."""
    return L(DecoderLayer)(
        self_attn=L(MultiheadAttention)(
            embed_dim="${..embed_dim}",
            num_heads="${....encoder.layer.self_attn.num_heads}",
            dropout="${..dropout}",
        ),
        cross_attn=cross_attn,
        ffn=L(FFN)(
            embed_dim="${..embed_dim}",
            hidden_dim="${....encoder.layer.ffn.hidden_dim}",
            dropout="${..dropout}",
        ),
        embed_dim="${...tokenizer.embed_dim}",
        dropout="${...encoder.layer.dropout}",
    )
