"""The parts of PaQ-DETR (arXiv 2603.06917), and functions that switch them on."""

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


def pattern_queries(model):
    """The first part: queries made of patterns, and the loss that keeps these apart."""
    model.query_source.content = patterns
    model.methods.append(diversity)


def paq_detr(model):
    """Both parts."""
    pattern_queries(model)
    model.methods.append(assignment)
