"""PaQ-DETR (arXiv 2603.06917): patterns, the `content` of a query source; two methods: their loss, the assignment."""

from detrx.d2.config import LazyCall as L
from detrx.projects.paq_detr import PatternContent, PatternDiversity, QualityAwareAssignment

patterns = L(PatternContent)(
    num_queries="${..num_queries}",
    embed_dim="${...tokenizer.embed_dim}",
    num_levels="${...tokenizer.num_levels}",
    num_patterns=150,
)
diversity = L(PatternDiversity)(weight=0.2)
assignment = L(QualityAwareAssignment)(top_k=4, gamma=0.4)
