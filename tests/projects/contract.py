"""Detectors and training methods, and which go together: what the tests of the contract run over."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from detrx.d2.config import LazyCall as L
from detrx.d2.structures import ImageList
from detrx.d2.utils import EventStorage
from detrx.modeling import (
    ContrastiveDenoising,
    Denoising,
    DetectionTransformer,
    EncoderProposals,
    EncoderSupervision,
    FocalLoss,
    GroupDenoising,
    L1Loss,
    LearnedQueries,
    MatchingCost,
    Method,
    MultiScaleTokens,
    Predictions,
    Supervision,
    Targets,
    TopKAssigner,
)
from detrx.projects.d3etr import MGD, Distillation, EncoderDistillation
from detrx.projects.d3etr.teacher import Teacher, freeze
from detrx.projects.h_detr import HybridBranch, HybridEpoch, HybridLayer
from detrx.projects.mr_detr import MrDETR
from detrx.projects.paq_detr import PatternContent, PatternDiversity, QualityAwareAssignment
from detrx.projects.qr_detr import FixedRouter, QueryRouting
from tests.modeling.small import make_input, make_model, with_boxes


def one_stage(cfg: DictConfig) -> None:
    cfg.query_source = L(LearnedQueries)(num_queries=10, embed_dim="${..tokenizer.embed_dim}")
    cfg.criterion.supervisions = cfg.criterion.supervisions[:1]


def two_stage(cfg: DictConfig) -> None:
    """As published before "++": queries made from the places of the proposals, which are of one class."""
    cfg.query_source.content, cfg.query_source.rank_by = "position", "first_class"
    cfg.criterion.supervisions[1].class_agnostic = True
    cfg.decoder.look_forward_twice = False


def with_patterns(cfg: DictConfig) -> None:
    cfg.query_source.content = L(PatternContent)(
        num_queries="${..num_queries}",
        embed_dim="${...tokenizer.embed_dim}",
        num_levels="${...tokenizer.num_levels}",
        num_patterns=5,
    )
    cfg.methods = [L(PatternDiversity)(weight=0.2)]


PLUS_PLUS = "deformable_detr/deformable_detr_digits.py"

DETECTORS: dict[str, tuple[str, Callable[[DictConfig], None] | None]] = {
    "detr": ("detr/detr_digits.py", None),
    "conditional_detr": ("conditional_detr/conditional_detr_digits.py", None),
    "dab_detr": ("dab_detr/dab_detr_digits.py", None),
    "dn_detr": ("dn_detr/dn_detr_digits.py", None),
    "deformable_detr": (PLUS_PLUS, one_stage),
    "deformable_detr_two_stage": (PLUS_PLUS, two_stage),
    "deformable_detr_plus_plus": (PLUS_PLUS, None),
    "pattern_queries": (PLUS_PLUS, with_patterns),
    "dino": ("dino/dino_digits.py", None),
    "align_detr": ("align_detr/align_detr_digits.py", None),
}
TWO_STAGE = ("deformable_detr_two_stage", "deformable_detr_plus_plus", "pattern_queries", "dino", "align_detr")
WITHOUT_BOXES = ("detr", "conditional_detr", "deformable_detr")


@dataclass(frozen=True)
class Contract:
    """A method as the tests switch it on.

    Attributes:
        make: makes it, for detectors of 64 channels, 10 queries, 10 classes and 3 decoder layers.
        refused: detectors that it does not work for, each with what the error says.
        remains: beginnings of the names of parameters that it puts into the detector itself, for inference, too.
    """

    make: Callable[[], Method]
    refused: Mapping[str, str] = field(default_factory=dict)
    remains: tuple[str, ...] = ()


def encoder_supervision() -> EncoderSupervision:
    proposals = EncoderProposals(1, embed_dim=64, num_classes=10, content="memory", embed_position=False)
    losses = [FocalLoss(weight=1.0), L1Loss(weight=5.0)]
    return EncoderSupervision(proposals, Supervision("encoder", TopKAssigner(MatchingCost()), losses, suffix="_enc"))


class SameKind(Teacher):
    """A teacher of the student's kind, with other weights: a changed copy of the student in the first step."""

    def __init__(self):
        super().__init__("", "", allow_untrained=True)

    def encode(self, student: DetectionTransformer, images: ImageList) -> MultiScaleTokens:
        if self._model is None:
            self._model = freeze(copy.deepcopy(student))
            self._model.methods = nn.ModuleList()
            generator = torch.Generator().manual_seed(0)
            for parameter in self._model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
        return super().encode(student, images)


def distillation(teacher: DetectionTransformer | None = None, **options: object) -> Distillation:
    """From a copy of `teacher`; None: `SameKind`."""
    method = Distillation("", inherit=[], **options)
    method.teacher = SameKind()
    if teacher is not None:
        method.teacher._model = freeze(copy.deepcopy(teacher))
        method.teacher._model.methods = nn.ModuleList()
    return method


class EncoderDistillationOfAnyLevels(EncoderDistillation):
    """Of as many levels as the detector has."""

    def __init__(self):
        super().__init__(MGD(64), "", allow_untrained=True)
        self.teacher = SameKind()

    def attach(self, model: DetectionTransformer) -> None:
        super().attach(model)
        self.loss = MGD(64, num_levels=model.tokenizer.num_levels)


METHODS: dict[str, Contract] = {
    "hybrid_branch": Contract(lambda: HybridBranch(num_queries=12, copies=3)),
    "hybrid_epoch": Contract(lambda: HybridEpoch(max_iter=10, copies=2)),
    "hybrid_layer": Contract(lambda: HybridLayer(num_layers=1, copies=3)),
    "mr_detr": Contract(MrDETR, refused={"detr": "has a softmax"}),
    "mr_detr_all_own": Contract(
        lambda: MrDETR(routes=["self_attn+cross_attn+ffn", "shared"]), refused={"detr": "has a softmax"}
    ),
    "quality_aware": Contract(QualityAwareAssignment, refused={"detr": "has a softmax"}),
    "contrastive_denoising": Contract(
        lambda: ContrastiveDenoising(num_queries=4),
        refused=dict.fromkeys(WITHOUT_BOXES, "needs a detector whose queries have reference boxes"),
    ),
    "group_denoising": Contract(
        lambda: GroupDenoising(num_groups=2),
        refused=dict.fromkeys(WITHOUT_BOXES, "needs a detector whose queries have reference boxes"),
    ),
    "query_routing": Contract(lambda: QueryRouting(router=FixedRouter(1.0)), remains=("decoder.layers.",)),
    "distillation": Contract(
        distillation,
        refused=dict.fromkeys(("deformable_detr", *TWO_STAGE), "of cross_attn compares dense attention maps"),
    ),
    "distillation_of_predictions": Contract(lambda: distillation(losses=["prediction"])),
    "encoder_distillation": Contract(EncoderDistillationOfAnyLevels),
    "encoder_supervision": Contract(
        encoder_supervision, refused=dict.fromkeys(TWO_STAGE, "is for detectors without EncoderProposals")
    ),
}

PAIRS = [(method, detector) for method in METHODS for detector in DETECTORS if detector not in METHODS[method].refused]
REFUSED = [(method, detector) for method in METHODS for detector in METHODS[method].refused]
ONCE = [next(pair for pair in reversed(PAIRS) if pair[0] == method) for method in METHODS]
"""Each method on one detector."""


@functools.cache
def _detector(name: str) -> DetectionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_model(*DETECTORS[name])


def detector(name: str, *without: type[Method]) -> DetectionTransformer:
    """A small detector with the methods that it has by itself, but those of the types `without`."""
    model = copy.deepcopy(_detector(name))
    model.methods = nn.ModuleList(method for method in model.methods if not isinstance(method, without))
    return model


class Inference(nn.Module):
    """What is exported: normalised images (B, 3, H, W) -> logits and boxes of all layers."""

    def __init__(self, model: DetectionTransformer):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        main = self.model.predict(images, None)["main"]
        return main.logits, main.boxes


def switch_on(model: DetectionTransformer, *methods: Method) -> DetectionTransformer:
    for method in methods:
        model.methods.append(method)
        method.attach(model)
    return model


def with_and_without(method: str, name: str) -> tuple[DetectionTransformer, DetectionTransformer]:
    """A detector with the method behind those it has by itself, and the same without it.

    Denoising takes the place of the denoising that the detector has.
    """
    added = METHODS[method].make()
    kind = Denoising if isinstance(added, Denoising) else type(added)
    plain = detector(name, kind)
    return switch_on(copy.deepcopy(plain), added), plain


def make_batch(*counts: int) -> list[dict]:
    """Images of two sizes, with so many boxes; 3 and 1 if nothing is said."""
    return [with_boxes(make_input(64, 96 - 32 * (i % 2)), count) for i, count in enumerate(counts or (3, 1))]


def training_step(
    model: DetectionTransformer, batch: list[dict], iteration: int = 0
) -> tuple[dict[str, Predictions], list[Supervision]]:
    """Predictions and supervisions of an iteration, with the same random noise each time."""
    torch.manual_seed(0)
    targets = Targets.from_instances([each["instances"] for each in batch], range(len(batch)), torch.device("cpu"))
    with EventStorage(iteration):
        return model.train().train_step(model.preprocess(batch), targets)[:2]


def losses_of(model: DetectionTransformer, batch: list[dict], iteration: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with EventStorage(iteration):
        return model.train()(batch)
