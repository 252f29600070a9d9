"""Detection transformers, as parts that configs put together."""

from .backbone import TimmBackbone
from .criterion import Criterion, Supervision
from .decoder import Decoder, DecoderLayer
from .encoder import DeformableEncoder, DeformableEncoderLayer
from .heads import PredictionHeads
from .losses import FocalLoss, GIoULoss, L1Loss, VarifocalLoss
from .matching import HungarianMatcher, MatchingCost, TopKAssigner
from .meta_arch import DetectionTransformer
from .neck import ChannelMapper
from .queries import Predictions, QueryGroup, Route
from .query_source import EncoderProposals, LearnedQueries
from .targets import Targets
from .tokens import MultiScaleTokens, Tokenizer

__all__ = [
    "ChannelMapper",
    "Criterion",
    "Decoder",
    "DecoderLayer",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "DetectionTransformer",
    "EncoderProposals",
    "FocalLoss",
    "GIoULoss",
    "HungarianMatcher",
    "L1Loss",
    "LearnedQueries",
    "MatchingCost",
    "MultiScaleTokens",
    "PredictionHeads",
    "Predictions",
    "QueryGroup",
    "Route",
    "Supervision",
    "Targets",
    "TimmBackbone",
    "Tokenizer",
    "TopKAssigner",
    "VarifocalLoss",
]
