"""Deformable-DETR++ as in the published code of Mr. DETR: the baseline of `mr_detr_deformable_r50`.

The encoder's proposals are matched by their anchors, with box costs alone, and their losses weigh three times as much.
"""

from detrx.d2.config import LazyCall as L
from detrx.modeling import MatchingCost
from detrx.projects.mr_detr import AnchorMatcher

from ....configs.deformable_detr.deformable_detr_plus_plus_r50 import dataloader, lr_multiplier, model, optimizer, train

_encoder = model.criterion.supervisions[1]
_encoder.assigner = L(AnchorMatcher)(cost=L(MatchingCost)(class_weight=0.0, l1_weight=5.0, giou_weight=2.0))
_encoder.weight = 3.0
