"""Decoder distillation (D3ETR): a student learns the predictions and attention maps of a frozen teacher's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from detrx.layers import AttentionInputs, recording
from detrx.modeling import (
    Branch,
    DetectionTransformer,
    Method,
    Predictions,
    QueryGroup,
    Step,
    Supervision,
)
from detrx.modeling.losses import Loss
from detrx.modeling.matching import Assigner
from detrx.modeling.queries import QueryLayout

from .checks import LOSSES, check_arguments, check_classes, check_maps, check_queries, check_query_source
from .losses import AttentionDistillation, ClassDistillation, GIoUDistillation, L1Distillation
from .matching import AdaptiveMatcher, DistillationCost, OfTeacher, SoftClasses, in_order
from .teacher import Lesson, Teacher, attentions_of, has_softmax, inherit

COMPONENTS = {"self_attention": "self_attn", "cross_attention": "cross_attn"}


class Distillation(Method):
    """A student learns the predictions and attention maps of the decoder of a teacher of the same kind.

    The student's main queries are paired with the teacher's by their predictions, in each decoder layer (adaptive
    matching). The teacher's queries also pass the student's decoder, as an auxiliary group that is separate from the
    main one. Each is paired with itself in the teacher (fixed matching), and the ground truth supervises the group like
    the main one. If the decoders have different numbers of layers, the last layers are compared.

    Each group can have the student's own queries or the teacher's, and any matching (Table 5 of the paper).

    The teacher is loaded at the first training step. It is not a part of the student's parameters, state dict or
    copies, and is not used at inference.

    Args:
        teacher: file of a config, a name in the model zoo, or a config with a `model`.
        checkpoint: file of the teacher's weights.
        losses: losses of both groups, some of `LOSSES`.
        matching: pairing of the main queries: "adaptive"; "index", by their index (fixed matching if they are the
            teacher's, otherwise no matching); "random", drawn for each image and step; None: no distillation of the
            main queries.
        queries: the main queries are the student's "own", or those of the "teacher": its query source is copied when a
            training starts and not trained, so that they are the student's queries at inference, too.
        auxiliary: pairing of the auxiliary group, with the values of `matching`; None: no auxiliary group.
        auxiliary_queries: the queries of the auxiliary group are those of the "teacher", or a second learned set of the
            student's "own".
        constraint: layers in which groups with the teacher's queries use the assignment of the teacher's predictions to
            the ground truth instead of their own (Eq. 7): "none", "last" or "all".
        inherit: parts of the student that are initialised with the teacher's weights when a training starts (not when
            it is resumed).
        class_weight, l1_weight, giou_weight: weights of the predictions in losses and cost (Eqs. 5 and 10).
        self_attention_weight, cross_attention_weight: weights of the attention maps.
        class_reduction: "sum" or "mean" over the classes, in loss and cost.
        query_reduction: "mean" or "sum" over the paired queries of an image, in the losses of the predictions. Eq. 10
            is printed with a sum; the losses are then N times as large for N queries.
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
        queries: str = "own",
        auxiliary: str | None = "index",
        auxiliary_queries: str = "teacher",
        constraint: str = "last",
        inherit: Sequence[str] = ("encoder", "decoder"),
        class_weight: float = 20.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        self_attention_weight: float = 1e4,
        cross_attention_weight: float = 1e4,
        class_reduction: str = "sum",
        query_reduction: str = "mean",
        auxiliary_weight: float = 1.0,
        share_images: bool = True,
        keep_maps: bool = True,
        allow_untrained: bool = False,
    ):
        super().__init__()
        weights = {"class": class_weight, "l1": l1_weight, "giou": giou_weight, "auxiliary": auxiliary_weight}
        weights |= {"self_attention": self_attention_weight, "cross_attention": cross_attention_weight}
        check_arguments(
            losses, matching, queries, auxiliary, auxiliary_queries, constraint, inherit, query_reduction, weights
        )
        self.teacher = Teacher(teacher, checkpoint, allow_untrained, share_images)
        self.losses = tuple(losses)
        self.matching, self.auxiliary, self.constraint = matching, auxiliary, constraint
        self.queries, self.auxiliary_queries = queries, auxiliary_queries
        self.inherit = tuple(inherit)
        self.class_weight, self.l1_weight, self.giou_weight = class_weight, l1_weight, giou_weight
        self.map_weights = {"self_attention": self_attention_weight, "cross_attention": cross_attention_weight}
        self.class_reduction, self.query_reduction = class_reduction, query_reduction
        self.auxiliary_weight, self.keep_maps = auxiliary_weight, keep_maps
        SoftClasses(reduction=class_reduction)
        if self.copied:
            self.register_buffer("inherited", torch.tensor(False))
        self._has_inherited = False  # reading the buffer waits for the device
        self._num_layers = 0
        self._constrained: list[tuple[OfTeacher, range]] = []
        self._lesson: Lesson | None = None
        self._records: dict[str, list[list[AttentionInputs]]] = {}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_constrained": [], "_lesson": None, "_records": {}}

    def extra_repr(self) -> str:
        return f"teacher={self.teacher}"

    @property
    def watched(self) -> list[str]:
        """Components of the decoder layers whose attention is compared."""
        if self.matching is None and self.auxiliary is None:
            return []
        return [COMPONENTS[loss] for loss in self.losses if loss in COMPONENTS]

    @property
    def copied(self) -> list[str]:
        """Parts of the teacher that are copied to the student when a training starts."""
        return list(dict.fromkeys([*self.inherit, *(["query_source"] if self.queries == "teacher" else [])]))

    @property
    def group(self) -> str:
        """Name of the auxiliary group."""
        return "teacher" if self.auxiliary_queries == "teacher" else "auxiliary"

    def attach(self, model: DetectionTransformer) -> None:
        self._num_layers = len(model.decoder.layers)
        for component in self.watched:
            attentions_of(model, component, "the student")
        if self.queries == "teacher":
            check_query_source(model)
            model.query_source.requires_grad_(False)
        if self.auxiliary_queries == "own":
            self.further = model.query_source.further(model.query_source.num_queries)

    def prepare(self, model: DetectionTransformer) -> None:
        if not self.copied or self._has_inherited:
            return
        if not self.inherited:
            inherit(model, self.teacher.on(model.device, model.pixel_mean.dtype), self.copied)
            self.inherited.fill_(True)
        self._has_inherited = True

    def supervise_last(self, supervisions: Sequence[Supervision]) -> Sequence[Supervision]:
        """If the main queries are the teacher's, their constrained layers get its assignment, once it has run."""
        self._constrained = []
        if self.queries == "own":
            return supervisions
        result: list[Supervision] = []
        for each in supervisions:
            if each.group == "main":
                result += self.constrained(each)
            else:
                result.append(each)
        return result

    def branches(self, step: Step) -> list[Branch]:
        model = step.model
        if self.matching is None and self.auxiliary is None:
            return []
        lesson = self.teacher.teach(model, step.images, self.watched)
        lesson = lesson.of_last_layers(min(len(model.decoder.layers), len(lesson.predictions.logits)))
        check_classes(model, self.teacher.on(model.device, model.pixel_mean.dtype))
        self._lesson = lesson
        branches = []
        if self.auxiliary is not None:
            if self.auxiliary_queries == "teacher":
                check_queries(step.main, lesson.queries)
            queries = lesson.queries if self.auxiliary_queries == "teacher" else step.further[self]
            branches.append(Branch(replace(queries, name=self.group), self.ground_truth(step)))
        before = len(model.decoder.layers) - len(lesson.predictions.logits)
        for assigner, layers in self._constrained:
            assigner.teacher = lesson.predictions.of_layers(slice(layers.start - before, layers.stop - before))
        self._constrained = []
        return branches

    def ground_truth(self, step: Step) -> list[Supervision]:
        """Supervisions of the auxiliary group by the ground truth: those of the main group in this step."""
        result = []
        for each in step.supervisions:
            if each.group != "main":
                continue
            each = each.replace(
                group=self.group, suffix=f"{each.suffix}_{self.group}", weight=each.weight * self.auxiliary_weight
            )
            result += [each] if self.auxiliary_queries == "own" else self.constrained(each)
        return result

    def constrained(self, supervision: Supervision) -> list[Supervision]:
        """A supervision of a group with the teacher's queries, whose constrained layers have the teacher's assignment
        (Eq. 7). Their assigners get the teacher's predictions in `branches`. The main ones may have such assigners."""
        layers = self._num_layers
        taught = min(layers, self.teacher.num_layers)
        start = {"none": layers, "last": layers - 1, "all": layers - taught}[self.constraint]
        own, constrained = supervision.split(start, layers)
        for part in constrained:
            if not isinstance(part.assigner, OfTeacher):
                part = part.replace(assigner=OfTeacher(part.assigner))
                self._constrained.append((part.assigner, part.numbers(layers)))
            own.append(part)
        return own

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
        self.teacher.forget()
        groups = {"main": self.matching, self.group: self.auxiliary}
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
                ClassDistillation(self.class_weight, teacher, classes, self.query_reduction),
                L1Distillation(self.l1_weight, teacher, self.query_reduction),
                GIoUDistillation(self.giou_weight, teacher, self.query_reduction),
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
