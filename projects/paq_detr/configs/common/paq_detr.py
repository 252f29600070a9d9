"""The parts of PaQ-DETR (arXiv 2603.06917), and `paq_detr`, which uses them all."""

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


def paq_detr(model):
    """Switch it on: queries made of patterns, the loss that keeps these apart, and the assignment."""
    model.query_source.content = patterns
    model.methods += [diversity, assignment]
