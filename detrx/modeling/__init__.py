"""Detection transformers, as parts that configs put together."""

from .backbone import TimmBackbone
from .criterion import Criterion, Supervision
from .cross_attention import ConditionalCrossAttention, DeformableCrossAttention, DenseCrossAttention
from .decoder import Decoder, DecoderLayer, LayerOutput
from .denoising import ContrastiveDenoising, Denoising, GroupDenoising
from .encoder import DeformableEncoder, DeformableEncoderLayer, TransformerEncoder, TransformerEncoderLayer
from .encoder_proposals import EncoderProposals, Proposals
from .encoder_supervision import EncoderSupervision
from .heads import PredictionHeads
from .learned_queries import AnchorQueries, LabelEmbedding, PositionQueries
from .losses import FocalLoss, GIoULoss, L1Loss, PairWeight, VarifocalLoss
from .matching import HungarianMatcher, KnownPairs, MatchingCost, MatchingQuality, TopKAssigner
from .meta_arch import DetectionTransformer, as_detection_transformer
from .methods import Branch, Method, Step
from .neck import ChannelMapper
from .postprocess import TopDetections
from .quality_losses import AlignedQuality, IABCELoss, RankWeight
from .queries import Predictions, Queries, QueryGroup, QueryTokens, Route
from .query_source import LearnedQueries, QueryContent, QueryRows, QuerySource
from .reference_position import AnchorPosition, ConditionalPosition, ReferencePosition
from .softmax import CrossEntropyLoss, SoftmaxMatchingCost, TopQueries
from .targets import Targets
from .tokens import MultiScaleTokens, Tokenizer

__all__ = [
    "AlignedQuality",
    "AnchorPosition",
    "AnchorQueries",
    "Branch",
    "ChannelMapper",
    "ConditionalCrossAttention",
    "ConditionalPosition",
    "ContrastiveDenoising",
    "Criterion",
    "CrossEntropyLoss",
    "Decoder",
    "DecoderLayer",
    "DeformableCrossAttention",
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "Denoising",
    "DenseCrossAttention",
    "DetectionTransformer",
    "EncoderProposals",
    "EncoderSupervision",
    "FocalLoss",
    "GIoULoss",
    "GroupDenoising",
    "HungarianMatcher",
    "IABCELoss",
    "KnownPairs",
    "L1Loss",
    "LabelEmbedding",
    "LayerOutput",
    "LearnedQueries",
    "MatchingCost",
    "MatchingQuality",
    "Method",
    "MultiScaleTokens",
    "PairWeight",
    "PositionQueries",
    "PredictionHeads",
    "Predictions",
    "Proposals",
    "Queries",
    "QueryContent",
    "QueryGroup",
    "QueryRows",
    "QuerySource",
    "QueryTokens",
    "RankWeight",
    "ReferencePosition",
    "Route",
    "SoftmaxMatchingCost",
    "Step",
    "Supervision",
    "Targets",
    "TimmBackbone",
    "Tokenizer",
    "TopDetections",
    "TopKAssigner",
    "TopQueries",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "VarifocalLoss",
    "as_detection_transformer",
]
