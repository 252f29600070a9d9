"""A small Align-DETR for digits: trains on two CPU cores in minutes."""

from detrx.d2.config import LazyCall as L
from detrx.modeling import GIoULoss, HungarianMatcher, IABCELoss, L1Loss, MatchingCost, RankWeight, Supervision

from ..dino.dino_digits import dataloader, lr_multiplier, model, optimizer, train

_cost = L(MatchingCost)(class_weight=2.0, l1_weight=5.0, giou_weight=2.0)
_ranked = [
    L(IABCELoss)(weight=2.0, pair_weight=L(RankWeight)(tau=1.5)),
    L(L1Loss)(weight=5.0, pair_weight=L(RankWeight)(tau=1.5)),
    L(GIoULoss)(weight=2.0, pair_weight=L(RankWeight)(tau=1.5)),
]
_plain = [L(IABCELoss)(weight=2.0), L(L1Loss)(weight=5.0), L(GIoULoss)(weight=2.0)]
model.criterion.supervisions = [
    L(Supervision)(
        group="main",
        assigner=L(HungarianMatcher)(cost=_cost, copies=2, max_share=0.5),
        losses=_ranked,
        layers=(None, -1),
    ),
    L(Supervision)(group="main", assigner=L(HungarianMatcher)(cost=_cost), losses=_plain, layers=(-1, None)),
    model.criterion.supervisions[1],  # the dense supervision of the proposals
]
