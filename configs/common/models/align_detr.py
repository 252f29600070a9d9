"""Align-DETR (arXiv 2304.07527), without a backbone: DINO with the IA-BCE loss and mixed matching.

Each ground truth takes two predictions in all layers but the last; the better one of the two counts more.

Sizes are set as in deformable_detr.py.
"""

from detrx.d2.config import LazyCall as L
from detrx.modeling import GIoULoss, HungarianMatcher, IABCELoss, L1Loss, MatchingCost, RankWeight, Supervision

from .dino import model

_cost = L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)
_several = L(HungarianMatcher)(cost=_cost, copies=2, max_share=0.5)
_ranked = [
    L(IABCELoss)(weight=1.0, pair_weight=L(RankWeight)(tau=1.5)),
    L(L1Loss)(weight=5.0, pair_weight=L(RankWeight)(tau=1.5)),
    L(GIoULoss)(weight=2.0, pair_weight=L(RankWeight)(tau=1.5)),
]
_plain = [L(IABCELoss)(weight=1.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)]
model.criterion.supervisions = [
    L(Supervision)(group="main", assigner=_several, losses=_ranked, layers=(None, -1)),
    L(Supervision)(group="main", assigner=L(HungarianMatcher)(cost=_cost), losses=_plain, layers=(-1, None)),
    L(Supervision)(group="encoder", assigner=_several, losses=_ranked, suffix="_enc"),
]
