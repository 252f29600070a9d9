"""Detection transformers, as parts that configs put together."""

from .backbone import TimmBackbone
from .criterion import Criterion, Supervision
from .cross_attention import DeformableCrossAttention
from .decoder import Decoder, DecoderLayer
from .denoising import ContrastiveDenoising, Denoising
from .encoder import DeformableEncoder, DeformableEncoderLayer
from .heads import PredictionHeads
from .losses import FocalLoss, GIoULoss, L1Loss, VarifocalLoss
from .matching import HungarianMatcher, KnownPairs, MatchingCost, TopKAssigner
from .meta_arch import DetectionTransformer
from .methods import Branch, Method, Step
from .neck import ChannelMapper
from .postprocess import TopDetections
from .queries import Predictions, Queries, QueryGroup, Route
from .query_source import EncoderProposals, LearnedQueries, Proposals
from .reference_position import ReferencePosition
from .targets import Targets
from .tokens import MultiScaleTokens, Tokenizer

__all__ = [
    "Branch",
    "ChannelMapper",
    "ContrastiveDenoising",
    "Criterion",
    "Decoder",
    "DecoderLayer",
    "DeformableCrossAttention",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "Denoising",
    "DetectionTransformer",
    "EncoderProposals",
    "FocalLoss",
    "GIoULoss",
    "HungarianMatcher",
    "KnownPairs",
    "L1Loss",
    "LearnedQueries",
    "MatchingCost",
    "Method",
    "MultiScaleTokens",
    "PredictionHeads",
    "Predictions",
    "Proposals",
    "Queries",
    "QueryGroup",
    "ReferencePosition",
    "Route",
    "Step",
    "Supervision",
    "Targets",
    "TimmBackbone",
    "Tokenizer",
    "TopDetections",
    "TopKAssigner",
    "VarifocalLoss",
]
