"""Sources of the decoder's queries: learned queries, or the encoder's best proposals."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import Linear, sine_embedding

from .heads import box_head, class_head
from .queries import Predictions, QueryGroup
from .tokens import MultiScaleTokens


class QueryRows(nn.Module):
    """The number of queries of one group, and its own parameters, with one row per query.

    Attributes:
        num_queries: N.
        content, pos, query_embed, centres, sizes: the parameters; a group has those that its query source reads.
    """

    content: nn.Embedding
    pos: nn.Embedding
    query_embed: nn.Embedding
    centres: nn.Parameter
    sizes: nn.Parameter

    def __init__(self, num_queries: int, **parameters: nn.Module | nn.Parameter):
        super().__init__()
        self.num_queries = num_queries
        for name, value in parameters.items():
            setattr(self, name, value)


class QueryContent(nn.Module):
    """Computes the content of the main queries from the image; passed as `content` to a query source.

    Attributes:
        num_queries: number N of queries.
    """

    num_queries: int

    @abstractmethod
    def forward(self, memory: MultiScaleTokens) -> Tensor:
        """Content (B, N, C) of the main queries."""

    def check(self, num_queries: int) -> None:
        """Raise ValueError if the query source has a different number of queries."""
        if self.num_queries != num_queries:
            raise InvalidInputError(
                f"{type(self).__name__} makes content for {self.num_queries} queries, but there are {num_queries}: "
                f"set its num_queries to {num_queries}"
            )


class QuerySource(nn.Module):
    """Creates the main query group and, in training, further groups of the same kind for methods that request them.

    Attributes:
        num_queries: number of queries in the main group.
        reference_dims: 4 for boxes, 2 for points, None for queries without references.
    """

    num_queries: int
    reference_dims: int | None

    def forward(self, memory: MultiScaleTokens) -> tuple[QueryGroup, dict[str, Predictions]]:
        """The main query group, and the encoder's predictions by name (empty in one-stage detectors)."""
        (main,), predictions = self.groups(memory)
        return main, predictions

    @abstractmethod
    def groups(
        self, memory: MultiScaleTokens, further: Sequence[QueryRows] = ()
    ) -> tuple[list[QueryGroup], dict[str, Predictions]]:
        """Like `forward`, with one additional group after the main one for each of `further`. All are named "main"."""

    @abstractmethod
    def further(self, num_queries: int) -> QueryRows:
        """Create the parameters of an additional group. The caller owns them and passes them to `groups`."""


class LearnedQueries(QuerySource):
    """One-stage queries: learned content and position; a linear layer maps positions to reference points (xy).

    Args:
        content: computes the content of the main queries, instead of learned content.
    """

    reference_dims = 2

    def __init__(self, num_queries: int, embed_dim: int, content: QueryContent | None = None):
        super().__init__()
        self.num_queries = num_queries
        if content is not None:
            content.check(num_queries)
        self.content = nn.Embedding(num_queries, embed_dim) if content is None else content
        self.pos = nn.Embedding(num_queries, embed_dim)
        self.reference_point = nn.Linear(embed_dim, 2)
        nn.init.xavier_normal_(self.reference_point.weight)
        nn.init.zeros_(self.reference_point.bias)

    def further(self, num_queries: int) -> QueryRows:
        content, pos = (nn.Embedding(num_queries, self.pos.embedding_dim) for _ in range(2))
        return QueryRows(num_queries, content=content, pos=pos)

    def groups(
        self, memory: MultiScaleTokens, further: Sequence[QueryRows] = ()
    ) -> tuple[list[QueryGroup], dict[str, Predictions]]:
        all_rows: list[LearnedQueries | QueryRows] = [self, *further]
        groups = []
        for rows in all_rows:
            content = rows.content(memory) if isinstance(rows.content, QueryContent) else rows.content.weight
            parts = (content, rows.pos.weight, self.reference_point(rows.pos.weight).float().sigmoid())
            content, pos, reference = (part.expand(memory.tokens.shape[0], -1, -1) for part in parts)
            groups.append(QueryGroup("main", content, pos, reference))
        return groups, {}


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

    def groups(
        self, memory: MultiScaleTokens, further: Sequence[QueryRows] = ()
    ) -> tuple[list[QueryGroup], dict[str, Predictions]]:
        """Rank the proposals once for all groups: the main group takes the best ones, the first of `further` the next
        ones, and so on. The predictions of the tokens are named "encoder".
        """
        proposals = self.propose(memory)
        all_rows: list[EncoderProposals | QueryRows] = [self, *further]
        counts = [rows.num_queries for rows in all_rows]
        chosen = [proposals.take(indices) for indices in self.rank(proposals, sum(counts)).split(counts, dim=1)]
        supervised = chosen[0] if self.supervise == "chosen" else proposals
        made = [self.content(memory) if isinstance(self.content, QueryContent) else None, *(None for _ in further)]
        groups = [self.group(*each) for each in zip(chosen, all_rows, made, strict=True)]
        return groups, {"encoder": supervised.predictions}

    def group(
        self, chosen: Proposals, rows: "EncoderProposals | QueryRows", content: Tensor | None = None
    ) -> QueryGroup:
        """Queries from the chosen proposals. `rows` has their learned content, if any; `content` (B, N, C) replaces
        it."""
        reference = chosen.boxes.detach()
        pos, of_position = self.embed(reference)
        if content is None:
            if self.content == "position":
                assert of_position is not None  # it has `embed_position`
                content = of_position
            elif self.content == "memory":
                content = chosen.tokens
            else:
                content = rows.query_embed.weight.expand(reference.shape[0], -1, -1)
        return QueryGroup("main", content, pos, reference)

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

    def rank(self, proposals: Proposals, count: int) -> Tensor:
        """Indices (B, count) of the tokens with the best proposals, best first."""
        if count > proposals.logits.shape[1]:
            raise InvalidInputError(
                f"num_queries is {count}, but the encoder has only {proposals.logits.shape[1]} tokens: "
                "use larger images, more levels or fewer queries (including those added by methods)"
            )
        logits = proposals.logits
        ranking = logits[..., 0] if self.rank_by == "first_class" else logits.amax(-1)
        return ranking.topk(count, dim=1).indices

    def embed(self, reference: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """References (B, N, 4) cxcywh -> position and content embeddings (B, N, C); None without embed_position."""
        if not self.embed_position:
            return None, None
        embedding = sine_embedding(reference, self.token_proj.out_features // 2)
        pos, content = self.pos_norm(self.pos_proj(embedding)).chunk(2, dim=-1)
        return pos, content
