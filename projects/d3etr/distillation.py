"""Decoder distillation (D3ETR): a student learns the predictions and attention maps of a frozen teacher's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from detrx.errors import InvalidInputError
from detrx.layers import AttentionInputs, recording
from detrx.modeling import Branch, DetectionTransformer, Method, Predictions, QueryGroup, Step, Supervision
from detrx.modeling.losses import Loss
from detrx.modeling.matching import Assigner
from detrx.modeling.queries import QueryLayout

from .losses import AttentionDistillation, ClassDistillation, GIoUDistillation, L1Distillation
from .matching import AdaptiveMatcher, DistillationCost, OfTeacher, SoftClasses, in_order
from .teacher import Lesson, Teacher, attentions_of, has_softmax, inherit

LOSSES = ("prediction", "self_attention", "cross_attention")
MATCHING = ("adaptive", "index", "random")
CONSTRAINTS = ("none", "last", "all")
GROUP = "teacher"
COMPONENTS = {"self_attention": "self_attn", "cross_attention": "cross_attn"}


class Distillation(Method):
    """A student learns the predictions and attention maps of the decoder of a teacher of the same kind.

    The student's main queries are paired with the teacher's by their predictions, in each decoder layer (adaptive
    matching). The teacher's queries also pass the student's decoder, as an auxiliary group that is separate from the
    main one. Each is paired with itself in the teacher (fixed matching), and the ground truth supervises the group like
    the main one. If the decoders have different numbers of layers, the last layers are compared.

    The teacher is loaded at the first training step. It is not a part of the student's parameters, state dict or
    copies, and is not used at inference.

    Args:
        teacher: file of a config, a name in the model zoo, or a config with a `model`.
        checkpoint: file of the teacher's weights.
        losses: losses of both groups, some of `LOSSES`.
        matching: pairing of the main queries: "adaptive"; "index", by their index (no matching); "random", drawn for
            each image and step; None: no distillation of the main queries.
        auxiliary: pairing of the auxiliary group, with the same values; "index" is fixed matching; None: no auxiliary
            group.
        constraint: layers in which the auxiliary group uses the assignment of the teacher's predictions to the ground
            truth instead of its own: "none", "last" or "all".
        inherit: parts of the student that are initialised with the teacher's weights when a training starts (not when
            it is resumed).
        class_weight, l1_weight, giou_weight: weights of the predictions in losses and cost (Eqs. 5 and 10).
        self_attention_weight, cross_attention_weight: weights of the attention maps.
        class_reduction: "sum" or "mean" over the classes, in loss and cost.
        auxiliary_weight: factor of all losses of the auxiliary group.
        share_images: the teacher receives the images as normalised by the student; see `Teacher`.
        keep_maps: keep the attention maps of all layers for the backward pass; otherwise, recompute them.
        allow_untrained: an empty `checkpoint` means random weights, for tests.
    """

    def __init__(
        self,
        teacher: str | Mapping[str, object],
        checkpoint: str = "",
        losses: Sequence[str] = LOSSES,
        matching: str | None = "adaptive",
        auxiliary: str | None = "index",
        constraint: str = "last",
        inherit: Sequence[str] = ("encoder", "decoder"),
        class_weight: float = 20.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        self_attention_weight: float = 1e4,
        cross_attention_weight: float = 1e4,
        class_reduction: str = "sum",
        auxiliary_weight: float = 1.0,
        share_images: bool = True,
        keep_maps: bool = True,
        allow_untrained: bool = False,
    ):
        super().__init__()
        if isinstance(losses, str) or set(losses) - set(LOSSES):
            raise InvalidInputError(f"losses must be a list of some of {LOSSES}, got {losses!r}")
        for key, value, known in (
            ("matching", matching, (*MATCHING, None)),
            ("auxiliary", auxiliary, (*MATCHING, None)),
            ("constraint", constraint, CONSTRAINTS),
        ):
            if value not in known:
                raise InvalidInputError(f"{key} must be one of {known}, got {value!r}")
        if isinstance(inherit, str):
            raise InvalidInputError(f'inherit must be a list of parts, such as ["encoder", "decoder"], got {inherit!r}')
        weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight, "auxiliary": auxiliary_weight}
        weights |= {"self_attention": self_attention_weight, "cross_attention": cross_attention_weight}
        if negative := [f"{key}_weight" for key, value in weights.items() if value < 0]:
            raise InvalidInputError(f"weights must not be negative, got {', '.join(negative)} below 0")
        self.teacher = Teacher(teacher, checkpoint, allow_untrained, share_images)
        self.losses = tuple(losses)
        self.matching, self.auxiliary, self.constraint = matching, auxiliary, constraint
        self.inherit = tuple(inherit)
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.map_weights = {"self_attention": self_attention_weight, "cross_attention": cross_attention_weight}
        self.class_reduction, self.auxiliary_weight, self.keep_maps = class_reduction, auxiliary_weight, keep_maps
        SoftClasses(reduction=class_reduction)
        if self.inherit:
            self.register_buffer("inherited", torch.tensor(False))
        self._has_inherited = False  # reading the buffer waits for the device
        self._lesson: Lesson | None = None
        self._records: dict[str, list[list[AttentionInputs]]] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_lesson": None, "_records": {}}

    def extra_repr(self) -> str:
        return f"teacher={self.teacher}"

    @property
    def watched(self) -> list[str]:
        """Components of the decoder layers whose attention is compared."""
        if self.matching is None and self.auxiliary is None:
            return []
        return [COMPONENTS[loss] for loss in self.losses if loss in COMPONENTS]

    def attach(self, model: DetectionTransformer) -> None:
        for component in self.watched:
            attentions_of(model, component, "the student")

    def prepare(self, model: DetectionTransformer) -> None:
        if not self.inherit or self._has_inherited:
            return
        if not self.inherited:
            inherit(model, self.teacher.on(model.device, model.pixel_mean.dtype), self.inherit)
            self.inherited.fill_(True)
        self._has_inherited = True

    def branches(self, step: Step) -> list[Branch]:
        model = step.model
        if self.matching is None and self.auxiliary is None:
            return []
        lesson = self.teacher.teach(model, step.images, self.watched)
        lesson = lesson.of_last_layers(min(len(model.decoder.layers), len(lesson.predictions.logits)))
        check_classes(model, self.teacher.on(model.device, model.pixel_mean.dtype))
        self._lesson = lesson
        if self.auxiliary is None:
            return []
        check_queries(step.main, lesson.queries)
        return [Branch(replace(lesson.queries, name=GROUP), self.ground_truth(step, lesson))]

    def ground_truth(self, step: Step, lesson: Lesson) -> list[Supervision]:
        """Supervisions of the auxiliary group by the ground truth: those of the main group in this step."""
        layers, taught = len(step.model.decoder.layers), len(lesson.predictions.logits)
        start = {"none": layers, "last": layers - 1, "all": layers - taught}[self.constraint]
        result = []
        for each in step.supervisions:
            if each.group != "main":
                continue
            each = each.replace(
                group=GROUP, suffix=f"{each.suffix}_{GROUP}", weight=each.weight * self.auxiliary_weight
            )
            own, constrained = each.split(start, layers)
            result += own
            for part in constrained:
                shift = layers - taught
                predictions = lesson.predictions.of_layers(slice(part.layers.start - shift, part.layers.stop - shift))
                result.append(part.replace(assigner=OfTeacher(part.assigner, predictions)))
        return result

    @contextmanager
    def during_decoder(self, step: Step) -> Iterator[None]:
        attentions = [attentions_of(step.model, component, "the student") for component in self.watched]
        with recording([each for of_layers in attentions for each in of_layers]) as records:
            yield
        records = iter(records)
        self._records = {
            component: [next(records) for _ in of_layers]
            for component, of_layers in zip(self.watched, attentions, strict=True)
        }

    def after_decoder(self, step: Step, predictions: Mapping[str, Predictions]) -> list[Branch]:
        """Supervisions of each group by the teacher."""
        lesson, records = self._lesson, self._records
        self._lesson, self._records = None, {}
        groups = {"main": self.matching, GROUP: self.auxiliary}
        supervisions = []
        for group, matching in groups.items():
            if matching is not None and self.losses:
                attention = self.attention_of(group, step, records)
                supervisions.append(self.distill(group, matching, step, predictions[group], lesson, attention))
        return [Branch(None, supervisions)] if supervisions else []

    def attention_of(
        self, name: str, step: Step, records: Mapping[str, Sequence[Sequence[AttentionInputs]]]
    ) -> dict[str, list[AttentionInputs]]:
        """Attention inputs of the queries of a group, by component, one per layer."""
        groups: list[QueryGroup] = [step.main]
        groups += [branch.group for branch in step.branches if branch.group is not None]
        layout = QueryLayout(groups)
        place, found = layout.slices[name], {}
        for component, of_layers in records.items():
            found[component] = []
            for index, calls in enumerate(of_layers):
                default = getattr(step.model.decoder.layers[index], component)
                served = dict(layout.by_component(component, index, default))[default]
                if component == "self_attn":  # called once per group
                    found[component].append(calls[served.index(place)])
                else:
                    start = sum(other.stop - other.start for other in served if other.start < place.start)
                    (call,) = calls
                    found[component].append(replace(call, q=call.q[:, :, start : start + place.stop - place.start]))
        return found

    def distill(
        self,
        group: str,
        matching: str,
        step: Step,
        predictions: Predictions,
        lesson: Lesson,
        attention: Mapping[str, Sequence[AttentionInputs]],
    ) -> Supervision:
        """The supervision of one group of the student by the teacher.

        Raises:
            ValueError: student and teacher have different numbers of heads or different token grids.
        """
        taught, teacher = len(lesson.predictions.logits), lesson.predictions
        layers = slice(len(predictions.logits) - taught, None)
        classes = SoftClasses(has_softmax(step.model), self.class_reduction)
        losses: list[Loss] = []
        if "prediction" in self.losses:
            losses += [
                ClassDistillation(self.class_weight, teacher, classes),
                L1Distillation(self.l1_weight, teacher),
                GIoUDistillation(self.giou_weight, teacher),
            ]
        for loss, component in COMPONENTS.items():
            if loss in self.losses:
                own, other = attention[component][layers], lesson.attention[component]
                check_maps(component, own, other, step.memory.shapes, lesson.shapes)
                name, between_queries = f"loss_distill_{component}", component == "self_attn"
                weight = self.map_weights[loss]
                losses.append(AttentionDistillation(weight, name, own, other, between_queries, self.keep_maps))
        return Supervision(
            group,
            self.assigner(matching, classes, predictions, teacher),
            losses,
            suffix="" if group == "main" else f"_{group}",
            layers=(layers.start, None),
            weight=1.0 if group == "main" else self.auxiliary_weight,
        )

    def assigner(self, matching: str, classes: SoftClasses, student: Predictions, teacher: Predictions) -> Assigner:
        """The assigner that pairs the predictions of student and teacher."""
        if matching == "adaptive":
            cost = DistillationCost(classes, self.class_weight, self.l1_weight, self.giou_weight)
            return AdaptiveMatcher(cost, teacher)
        return in_order(student, teacher, shuffle=matching == "random")


def check_classes(student: DetectionTransformer, teacher: DetectionTransformer) -> None:
    """Raise ValueError if the classes of student and teacher cannot be compared."""
    own, other = (model.decoder.heads.class_heads[-1].out_features for model in (student, teacher))
    if has_softmax(student) != has_softmax(teacher):
        raise InvalidInputError(
            'Distillation: student and teacher must both have a softmax with a "no object" class, or both a sigmoid '
            "for each class"
        )
    if own != other:
        raise InvalidInputError(f"Distillation: the student predicts {own} classes, the teacher {other}")


def check_queries(student: QueryGroup, teacher: QueryGroup) -> None:
    """Raise ValueError if the student's decoder cannot process the teacher's queries."""

    def kind(group: QueryGroup) -> dict[str, int | None]:
        parts = {"content": group.content, "pos": group.pos, "reference": group.reference}
        return {key: None if part is None else part.shape[-1] for key, part in parts.items()}

    if kind(student) != kind(teacher):
        raise InvalidInputError(
            "Distillation: the teacher's queries cannot pass the student's decoder, because their widths differ (None: "
            f"no such part): {kind(teacher)} instead of {kind(student)}; set auxiliary=None to disable fixed matching"
        )


def check_maps(
    component: str,
    student: Sequence[AttentionInputs],
    teacher: Sequence[AttentionInputs],
    student_shapes: Sequence[tuple[int, int]],
    teacher_shapes: Sequence[tuple[int, int]],
) -> None:
    """Raise ValueError if attention maps cannot be compared."""
    own, other = [each.q.shape[1] for each in student], [each.q.shape[1] for each in teacher]
    if own != other:
        raise InvalidInputError(
            f"Distillation: {component} has {own[-1]} heads in the student and {other[-1]} in the teacher, so their "
            "maps cannot be compared: leave its loss out of `losses`"
        )
    if component == "cross_attn" and student_shapes != teacher_shapes:
        raise InvalidInputError(
            f"Distillation: the student has token grids of the sizes {list(student_shapes)}, the teacher of "
            f"{list(teacher_shapes)}, so cross-attention cannot be compared: use backbones of the same stride, "
            'or leave "cross_attention" out of `losses`'
        )
