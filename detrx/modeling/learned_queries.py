"""Queries that are the same for every image: learned positions, or learned anchor boxes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrx.errors import InvalidInputError
from detrx.layers import MLP, inverse_sigmoid, reset_linears

from .queries import Predictions, QueryGroup
from .query_source import QueryContent, QueryRows, QuerySource
from .tokens import MultiScaleTokens


class PositionQueries(QuerySource):
    """Learned positions without content (DETR, arXiv 2005.12872).

    Args:
        reference_points: predict a reference point (xy) from each position (Conditional DETR, arXiv 2108.06152).
        content: computes the content of the main queries (default: zero).
    """

    def __init__(
        self, num_queries: int, embed_dim: int, reference_points: bool = False, content: QueryContent | None = None
    ):
        super().__init__()
        if content is not None:
            content.check(num_queries)
        self.num_queries = num_queries
        self.content = content
        self.pos = nn.Embedding(num_queries, embed_dim)
        self.reference_dims = 2 if reference_points else None
        self.reference_point = MLP(embed_dim, embed_dim, 2, 2) if reference_points else None
        reset_linears(self)

    def further(self, num_queries: int) -> QueryRows:
        return QueryRows(num_queries, pos=nn.Embedding(num_queries, self.pos.embedding_dim))

    def rows_per_query(self) -> dict[str, int]:
        return {"pos.weight": 1}

    def groups(
        self, memory: MultiScaleTokens, further: Sequence[QueryRows] = ()
    ) -> tuple[list[QueryGroup], dict[str, Predictions]]:
        all_rows: list[PositionQueries | QueryRows] = [self, *further]
        groups = []
        for rows in all_rows:
            pos = rows.pos.weight.expand(memory.tokens.shape[0], -1, -1)
            reference = None
            if self.reference_point is not None:
                reference = self.reference_point(rows.pos.weight).float().sigmoid().expand(pos.shape[0], -1, -1)
            if rows is self and self.content is not None:
                content = self.content(memory)
            else:
                content = torch.zeros_like(pos)
            groups.append(QueryGroup("main", content, pos, reference))
        return groups, {}


class LabelEmbedding(nn.Module):
    """Content of queries with a label: an embedding, and a last channel that is 1 for given labels, otherwise 0.

    Label `num_classes` means "no object".
    """

    def __init__(self, num_classes: int, embed_dim: int):
        super().__init__()
        self.num_classes = num_classes
        self.embed = nn.Embedding(num_classes + 1, embed_dim - 1)

    def forward(self, labels: Tensor) -> Tensor:
        """Given labels (...) int64 -> (..., C)."""
        embedding = self.embed(labels)
        return torch.cat([embedding, torch.ones_like(embedding[..., :1])], dim=-1)

    def no_object(self) -> Tensor:
        """Content (C,) of queries without a label."""
        embedding = self.embed.weight[-1]
        return torch.cat([embedding, torch.zeros_like(embedding[:1])])


class AnchorQueries(QuerySource):
    """Learned anchor boxes (DAB-DETR, arXiv 2201.12329). Their content is zero or shared by all anchors.

    Args:
        freeze_centres: do not train the centres, which are initialised at random over the image.
        num_patterns: number of learned contents; each pair of anchor and pattern is a query (Anchor DETR).
        label_embedding: queries start as "no object" of this embedding (DN-DETR).
        content: computes the content of the main queries instead.
    """

    def __init__(
        self,
        num_queries: int,
        embed_dim: int,
        freeze_centres: bool = False,
        num_patterns: int = 0,
        label_embedding: LabelEmbedding | None = None,
        content: QueryContent | None = None,
    ):
        super().__init__()
        if content is not None:
            if num_patterns:
                raise InvalidInputError(
                    f"num_patterns is {num_patterns}, but a content is given, which would leave the patterns unused"
                )
            content.check(num_queries)
        if num_patterns and label_embedding is not None:
            raise InvalidInputError(
                f"num_patterns is {num_patterns}, but queries with a label_embedding have no patterns"
            )
        self.reference_dims = 4
        self.num_queries = num_queries
        self.embed_dim = embed_dim
        self.freeze_centres = freeze_centres
        self.centres, self.sizes = self.anchors(num_queries)
        self.patterns_per_anchor = max(1, num_patterns)
        self.patterns = nn.Embedding(num_patterns, embed_dim) if num_patterns else None
        self.label_embedding = label_embedding
        self.content = content

    def further(self, num_queries: int) -> QueryRows:
        centres, sizes = self.anchors(num_queries)
        return QueryRows(num_queries, centres=centres, sizes=sizes)

    def anchors(self, num_queries: int) -> tuple[nn.Parameter, nn.Parameter]:
        """Initial centres and sizes, both (N, 2) logits."""
        centres = nn.Parameter(inverse_sigmoid(torch.rand(num_queries, 2)), requires_grad=not self.freeze_centres)
        return centres, nn.Parameter(torch.randn(num_queries, 2))

    def rows_per_query(self) -> dict[str, int]:
        return {"centres": 1, "sizes": 1}

    def groups(
        self, memory: MultiScaleTokens, further: Sequence[QueryRows] = ()
    ) -> tuple[list[QueryGroup], dict[str, Predictions]]:
        """See `QuerySource`. The queries of a group are ordered by pattern."""
        all_rows: list[AnchorQueries | QueryRows] = [self, *further]
        return [self.group(memory, rows) for rows in all_rows], {}

    def group(self, memory: MultiScaleTokens, rows: "AnchorQueries | QueryRows") -> QueryGroup:
        """The queries of the anchors in `rows`, for every pattern."""
        batch = memory.tokens.shape[0]
        anchors = torch.cat([rows.centres, rows.sizes], dim=-1).float().sigmoid()
        if self.label_embedding is not None:
            contents = self.label_embedding.no_object()[None]
        elif self.patterns is not None:
            contents = self.patterns.weight
        else:
            contents = memory.tokens.new_zeros(1, self.embed_dim)
        if rows is self and self.content is not None:
            content = self.content(memory)
        else:
            content = contents.repeat_interleave(len(anchors), dim=0).expand(batch, -1, -1)
        reference = anchors.repeat(len(contents), 1).expand(batch, -1, -1)
        return QueryGroup("main", content, None, reference)
