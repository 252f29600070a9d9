"""Two-stage queries: the encoder's best proposals."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import Linear, cast_like, sine_embedding

from .heads import box_head, class_head
from .queries import Predictions, QueryGroup
from .query_source import QueryContent, QueryRows, QuerySource
from .tokens import MultiScaleTokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proposals:
    """The proposals of all encoder tokens.

    Attributes:
        tokens: (B, S, C) projected tokens.
        logits: (B, S, K).
        boxes: (B, S, 4) cxcywh in [0, 1] of the unpadded image.
        anchors: (B, S, 4), the boxes before regression; (1, 1, 1, 1) for unusable tokens.
    """

    tokens: Tensor
    logits: Tensor
    boxes: Tensor
    anchors: Tensor

    @property
    def predictions(self) -> Predictions:
        return Predictions(self.logits[None], self.boxes[None], self.anchors[None])

    def take(self, chosen: Tensor) -> "Proposals":
        """The proposals of the tokens `chosen` (B, N)."""
        parts = (self.tokens, self.logits, self.boxes, self.anchors)
        return Proposals(*(part.gather(1, chosen[..., None].expand(-1, -1, part.shape[-1])) for part in parts))


class EncoderProposals(QuerySource):
    """Two-stage queries: every token proposes a box around itself; the best ones become the decoder's references.

    Args:
        num_queries: number of proposals to keep.
        content: initial content of the queries: "position", an embedding of the proposal (Deformable DETR two-stage);
            "learned", an embedding per rank ("mixed query selection", DINO); "memory", the selected tokens; or a
            `QueryContent`, which computes the content of the main queries, while further queries have learned content.
        embed_position: embed the proposals as the queries' positions; False if the decoder computes positions.
        rank_by: "first_class", the logit of class 0 (Deformable DETR, whose encoder labels everything 0), or
            "max", the largest logit of any class (DINO).
        supervise: tokens whose predictions are passed to the criterion: "all", or the "chosen" ones (DINO).
        base_size: side of the proposals of level 0 as a fraction of the image; it doubles from level to level.
        num_classes: outputs K of the class head.
    """

    reference_dims = 4

    CONTENT = ("position", "learned", "memory")
    RANK_BY = ("first_class", "max")
    SUPERVISE = ("all", "chosen")

    def __init__(
        self,
        num_queries: int,
        embed_dim: int,
        num_classes: int,
        content: str | QueryContent = "position",
        embed_position: bool = True,
        rank_by: str = "first_class",
        supervise: str = "all",
        base_size: float = 0.05,
    ):
        super().__init__()
        options: list[tuple[str, str, tuple[str, ...]]] = [
            ("rank_by", rank_by, self.RANK_BY),
            ("supervise", supervise, self.SUPERVISE),
        ]
        if isinstance(content, QueryContent):
            content.check(num_queries)
        else:
            options.insert(0, ("content", content, self.CONTENT))
        for name, value, known in options:
            if value not in known:
                raise InvalidInputError(f"{name} must be one of {known}, got {value!r}")
        if content == "position" and not embed_position:
            raise InvalidInputError('content="position" needs embed_position=True')
        self.num_queries, self.content, self.embed_position = num_queries, content, embed_position
        self.rank_by, self.supervise, self.base_size = rank_by, supervise, base_size
        self.warned = False
        self.token_proj = Linear(embed_dim, embed_dim)
        self.token_norm = nn.LayerNorm(embed_dim)
        self.class_head = class_head(embed_dim, num_classes)
        self.box_head = box_head(embed_dim)
        nn.init.xavier_uniform_(self.token_proj.weight)
        if embed_position:
            # Position and content, concatenated and normalised together; only content="position" uses the second half.
            self.pos_proj = nn.Linear(2 * embed_dim, 2 * embed_dim)
            self.pos_norm = nn.LayerNorm(2 * embed_dim)
            nn.init.xavier_uniform_(self.pos_proj.weight)
        if content == "learned":
            self.query_embed = nn.Embedding(num_queries, embed_dim)

    def further(self, num_queries: int) -> QueryRows:
        if self.content == "learned" or isinstance(self.content, QueryContent):
            return QueryRows(num_queries, query_embed=nn.Embedding(num_queries, self.token_proj.out_features))
        return QueryRows(num_queries)

    def rows_per_query(self) -> dict[str, int]:
        return {"query_embed.weight": 1} if self.content == "learned" else {}

    def groups(
        self, memory: MultiScaleTokens, further: Sequence[QueryRows] = ()
    ) -> tuple[list[QueryGroup], dict[str, Predictions]]:
        """Rank the proposals once for all groups: the main group takes the best ones, the first of `further` the next
        ones, and so on, from the best ones again after the last. No group is larger than the number of tokens. The
        predictions of the tokens are named "encoder".

        Padding ranks like the image if the backbone saw it, as in the published implementations. Otherwise it supplies
        no queries, and an image with fewer tokens than queries has empty rows, so it gets the same queries in every
        batch.
        """
        proposals = self.propose(memory)
        all_rows: list[EncoderProposals | QueryRows] = [self, *further]
        counts = [rows.num_queries for rows in all_rows]
        if self.training and not self.warned and not torch.compiler.is_compiling():
            self.warned = warn_of_few_tokens(proposals.logits.shape[1], sum(counts))
        ranked = self.rank(proposals, sum(counts), None if memory.fewest is None else memory.padding_mask)
        chosen = [proposals.take(indices) for indices in deal(ranked, counts)]
        supervised = chosen[0] if self.supervise == "chosen" else proposals
        made = [self.content(memory) if isinstance(self.content, QueryContent) else None, *(None for _ in further)]
        groups = [self.group(*each) for each in zip(chosen, all_rows, made, strict=True)]
        rows = groups[0].content.shape[1]
        if memory.padding_mask is not None and memory.fewest is not None and memory.fewest < rows:
            tokens = memory.padding_mask.logical_not().sum(1, keepdim=True)
            groups[0] = replace(groups[0], padding=torch.arange(rows, device=tokens.device) >= tokens)
        return groups, {"encoder": supervised.predictions}

    def group(
        self, chosen: Proposals, rows: "EncoderProposals | QueryRows", content: Tensor | None = None
    ) -> QueryGroup:
        """Queries from the chosen proposals. `rows` has their learned content, if any; `content` (B, M, C) replaces
        it. If fewer proposals than M are chosen, the last contents are left out."""
        reference = chosen.boxes.detach()
        count = reference.shape[1]
        pos, of_position = self.embed(reference)
        if content is None:
            if self.content == "position":
                assert of_position is not None  # it has `embed_position`
                content = of_position
            elif self.content == "memory":
                content = chosen.tokens
            else:
                content = rows.query_embed.weight.expand(reference.shape[0], -1, -1)
        return QueryGroup("main", content[:, :count], pos, reference)

    def propose(
        self, memory: MultiScaleTokens, class_head: nn.Module | None = None, box_head: nn.Module | None = None
    ) -> Proposals:
        """The proposals of all tokens, predicted by the given heads (default: this module's heads)."""
        class_head = self.class_head if class_head is None else class_head
        box_head = self.box_head if box_head is None else box_head
        anchors, usable = self.anchors(memory)
        # Unusable anchors have the logit +inf, so their box is (1, 1, 1, 1) whatever the head predicts.
        anchor_logits = anchors.logit().masked_fill(~usable[..., None], float("inf"))
        tokens = self.token_norm(self.token_proj(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        boxes = (box_head(tokens).float() + anchor_logits).sigmoid()
        return Proposals(tokens, class_head(tokens), boxes, anchors.masked_fill(~usable[..., None], 1.0))

    def anchors(self, memory: MultiScaleTokens) -> tuple[Tensor, Tensor]:
        """Proposals before regression.

        Returns:
            anchors: (B, S, 4) cxcywh.
            usable: (B, S) bool, False for padding and for anchors with any coordinate outside (0.01, 0.99).
        """
        centres, levels = memory.cell_centres()
        size = self.base_size * 2.0**levels
        anchors = torch.cat([centres, size[None, :, None].expand(len(centres), -1, 2)], dim=-1)
        anchors = anchors.expand(memory.tokens.shape[0], -1, -1)
        usable = ((anchors > 0.01) & (anchors < 0.99)).all(-1)
        if memory.padding_mask is not None:
            usable = usable & ~memory.padding_mask
        return anchors, usable

    def rank(self, proposals: Proposals, count: int, last: Tensor | None = None) -> Tensor:
        """Indices (B, count) of the tokens with the best proposals, best first; of all tokens, if there are fewer.

        Equally good ones are in the order of the tokens, so that learned content, which belongs to the rank, goes to
        the same proposals in every batch.

        Args:
            last: (B, S) bool, True for tokens that come after all others.
        """
        logits = proposals.logits
        ranking = logits[..., 0] if self.rank_by == "first_class" else logits.amax(-1)
        if last is not None:
            ranking = ranking.masked_fill(last, float("-inf"))
        best = ranking.topk(min(count, ranking.shape[1]), dim=1).indices
        if torch.compiler.is_compiling():  # exported, too: ONNX has no stable sort, and its TopK has this order
            return best
        best = best.sort(dim=1).values
        return best.gather(1, ranking.gather(1, best).argsort(dim=1, descending=True, stable=True))

    def embed(self, reference: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """References (B, N, 4) cxcywh -> position and content embeddings (B, N, C); None without embed_position."""
        if not self.embed_position:
            return None, None
        embedding = sine_embedding(reference, self.token_proj.out_features // 2)
        pos, content = self.pos_norm(self.pos_proj(cast_like(embedding, self.pos_proj.weight))).chunk(2, dim=-1)
        return pos, content


def warn_of_few_tokens(tokens: int, queries: int) -> bool:
    """Log a warning if there are fewer tokens than queries. Returns whether there are."""
    if tokens < queries:
        logger.warning(
            "the query source and methods ask for %d queries, but the images of this batch have only %d tokens: no "
            "group of queries is larger than that, and groups share proposals. Use larger images, more levels or fewer "
            "queries",
            queries,
            tokens,
        )
    return tokens < queries


def deal(ranked: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Deal the columns of `ranked` (B, S) out in order, (B, min(count, S)) for each of `counts`, from the first column
    again after the last."""
    columns = ranked.shape[1]
    if sum(counts) == columns:
        return list(ranked.split(list(counts), dim=1))
    hands, start = [], 0
    for count in (min(each, columns) for each in counts):
        beyond = max(0, start + count - columns)
        first = ranked[:, start : start + count]
        hands.append(torch.cat([first, ranked[:, :beyond]], dim=1) if beyond else first)
        start = (start + count) % columns
    return hands
