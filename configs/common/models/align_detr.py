"""Align-DETR (arXiv 2304.07527), without a backbone: DINO with the IA-BCE loss and mixed matching.

Sizes are set as in deformable_detr.py.
"""

from detrx.d2.config import LazyCall as L
from detrx.modeling import GIoULoss, HungarianMatcher, IABCELoss, L1Loss, MatchingCost, RankWeight, Supervision

from .dino import model

_cost = L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)


def mixed_matching(class_weight, **where):
    """Each ground truth takes two predictions; the better one of the two counts more."""
    weight = L(RankWeight)(tau=1.5)
    return L(Supervision)(
        assigner=L(HungarianMatcher)(cost=_cost, copies=2, max_share=0.5),
        losses=[
            L(IABCELoss)(weight=class_weight, pair_weight=weight),
            L(L1Loss)(weight=5.0, pair_weight=weight),
            L(GIoULoss)(weight=2.0, pair_weight=weight),
        ],
        **where,
    )


def decoder_supervisions(class_weight):
    """Mixed matching in all layers but the last, where each ground truth takes one prediction."""
    return [
        mixed_matching(class_weight, group="main", layers=(None, -1)),
        L(Supervision)(
            group="main",
            assigner=L(HungarianMatcher)(cost=_cost),
            losses=[L(IABCELoss)(weight=class_weight), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)],
            layers=(-1, None),
        ),
    ]


model.criterion.supervisions = [
    *decoder_supervisions(class_weight=1.0),
    mixed_matching(class_weight=1.0, group="encoder", suffix="_enc"),
]
