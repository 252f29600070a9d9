"""Where the decoder's queries come from: learned ones, or the encoder's best proposals."""

import torch
from torch import Tensor, nn

from detrx.layers import sine_embedding

from .heads import box_head, class_head
from .queries import Predictions, QueryGroup
from .tokens import MultiScaleTokens


class LearnedQueries(nn.Module):
    """One-stage queries: learned content and position; reference points (xy) are read off the position."""

    def __init__(self, num_queries: int, embed_dim: int):
        super().__init__()
        self.content = nn.Embedding(num_queries, embed_dim)
        self.pos = nn.Embedding(num_queries, embed_dim)
        self.reference_point = nn.Linear(embed_dim, 2)
        nn.init.xavier_normal_(self.reference_point.weight)
        nn.init.zeros_(self.reference_point.bias)

    def forward(self, memory: MultiScaleTokens) -> tuple[QueryGroup, dict[str, Predictions]]:
        """The main query group, and no predictions of the encoder."""
        batch = len(memory.tokens)
        reference = self.reference_point(self.pos.weight).float().sigmoid()
        content, pos, reference = (t.expand(batch, -1, -1) for t in (self.content.weight, self.pos.weight, reference))
        return QueryGroup("main", content, pos, reference), {}


class EncoderProposals(nn.Module):
    """Two-stage queries: every token proposes a box around itself, the best become the decoder's references.

    Args:
        num_queries: proposals to keep.
        content: what the queries start from: "position", an embedding of the proposal (Deformable DETR two-stage);
            "learned", an embedding per rank ("mixed query selection", DINO); "memory", the selected tokens.
        rank_by: "first_class", the logit of class 0 (Deformable DETR, whose encoder labels everything 0), or
            "max", the largest logit of any class (DINO).
        base_size: side of the proposals of level 0 as a fraction of the image; it doubles from level to level.
        num_classes: outputs K of the class head.
    """

    CONTENT = ("position", "learned", "memory")
    RANK_BY = ("first_class", "max")

    def __init__(
        self,
        num_queries: int,
        embed_dim: int,
        num_classes: int,
        content: str = "position",
        rank_by: str = "first_class",
        base_size: float = 0.05,
    ):
        super().__init__()
        if content not in self.CONTENT:
            raise ValueError(f"content must be one of {self.CONTENT}, got {content!r}")
        if rank_by not in self.RANK_BY:
            raise ValueError(f"rank_by must be one of {self.RANK_BY}, got {rank_by!r}")
        self.num_queries, self.content, self.rank_by, self.base_size = num_queries, content, rank_by, base_size
        self.token_proj = nn.Linear(embed_dim, embed_dim)
        self.token_norm = nn.LayerNorm(embed_dim)
        self.class_head = class_head(embed_dim, num_classes)
        self.box_head = box_head(embed_dim)
        # Position and content side by side, normalised together; only content="position" uses the second half.
        self.pos_proj = nn.Linear(2 * embed_dim, 2 * embed_dim)
        self.pos_norm = nn.LayerNorm(2 * embed_dim)
        if content == "learned":
            self.query_embed = nn.Embedding(num_queries, embed_dim)
        for linear in (self.token_proj, self.pos_proj):
            nn.init.xavier_uniform_(linear.weight)

    def anchors(self, memory: MultiScaleTokens) -> tuple[Tensor, Tensor]:
        """Proposals before regression.

        Returns:
            anchors: (B, S, 4) cxcywh.
            usable: (B, S) bool, False for padding and for anchors that touch the image's border (0.01 or less from it,
                in any of the four numbers).
        """
        centres, levels = memory.cell_centres()
        size = self.base_size * 2.0**levels
        anchors = torch.cat([centres, size[None, :, None].expand(len(centres), -1, 2)], dim=-1)
        anchors = anchors.expand(len(memory.tokens), -1, -1)
        usable = ((anchors > 0.01) & (anchors < 0.99)).all(-1)
        if memory.padding_mask is not None:
            usable = usable & ~memory.padding_mask
        return anchors, usable

    def forward(self, memory: MultiScaleTokens) -> tuple[QueryGroup, dict[str, Predictions]]:
        """The main query group, and the predictions of all S tokens under the name "encoder"."""
        if self.num_queries > memory.tokens.shape[1]:
            raise ValueError(
                f"num_queries is {self.num_queries}, but the encoder has only {memory.tokens.shape[1]} tokens "
                f"(feature maps {list(memory.shapes)}): use larger images, more levels or fewer queries"
            )
        anchors, usable = self.anchors(memory)
        # Unusable anchors have the logit +inf, so that their box is (1, 1, 1, 1) whatever the head says.
        anchor_logits = anchors.logit().masked_fill(~usable[..., None], float("inf"))
        tokens = self.token_norm(self.token_proj(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        logits = self.class_head(tokens)
        boxes = (self.box_head(tokens).float() + anchor_logits).sigmoid()

        ranking = logits[..., 0] if self.rank_by == "first_class" else logits.amax(-1)
        chosen = ranking.topk(self.num_queries, dim=1).indices
        reference = boxes.gather(1, chosen[..., None].expand(-1, -1, 4)).detach()
        embedding = sine_embedding(reference, tokens.shape[-1] // 2)
        pos, content = self.pos_norm(self.pos_proj(embedding)).chunk(2, dim=-1)
        if self.content == "learned":
            content = self.query_embed.weight.expand(len(tokens), -1, -1)
        elif self.content == "memory":
            content = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
        group = QueryGroup("main", content, pos, reference)
        return group, {"encoder": Predictions(logits[None], boxes[None])}
