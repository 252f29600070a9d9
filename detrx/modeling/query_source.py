"""Sources of the decoder's queries, and learned queries with reference points."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from detrx.errors import InvalidInputError

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

    def rows_per_query(self) -> dict[str, int]:
        """See `QuerySource`."""
        return {name: 1 for name, _ in self.named_parameters()}


class QueryContent(nn.Module):
    """Computes the content of the main queries from the image; passed as `content` to a query source.

    Attributes:
        num_queries: number N of queries.
    """

    num_queries: int

    @abstractmethod
    def forward(self, memory: MultiScaleTokens) -> Tensor:
        """Content (B, N, C) of the main queries."""

    def rows_per_query(self) -> dict[str, int]:
        """See `QuerySource`."""
        return {}

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
        num_queries: number of queries in the main group; of its anchors, if it has patterns.
        patterns_per_anchor: number of queries of the main group that share an anchor. They are ordered by pattern.
        reference_dims: 4 for boxes, 2 for points, None for queries without references.
    """

    num_queries: int
    patterns_per_anchor: int = 1
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

    def rows_per_query(self) -> dict[str, int]:
        """How many rows of which parameters each query has, so that a checkpoint can be loaded into a model of fewer
        queries. The rows of a query are consecutive."""
        return {}


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

    def rows_per_query(self) -> dict[str, int]:
        return {"pos.weight": 1} if isinstance(self.content, QueryContent) else {"content.weight": 1, "pos.weight": 1}

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
