"""What a distillation cannot do: arguments that make no sense, and students and teachers that do not fit each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from detrx.errors import InvalidInputError
from detrx.layers import AttentionInputs
from detrx.modeling import DetectionTransformer, EncoderProposals, QueryContent, QueryGroup

from .matching import REDUCTIONS
from .teacher import has_softmax

LOSSES = ("prediction", "self_attention", "cross_attention")
MATCHING = ("adaptive", "index", "random")
QUERIES = ("own", "teacher")
CONSTRAINTS = ("none", "last", "all")


def check_arguments(
    losses: Sequence[str],
    matching: str | None,
    queries: str,
    auxiliary: str | None,
    auxiliary_queries: str,
    constraint: str,
    inherit: Sequence[str],
    query_reduction: str,
    weights: Mapping[str, float],
) -> None:
    """Raise ValueError if arguments of a `Distillation` are none of the known values, or make no sense together.

    Args:
        weights: by name, without "_weight".
    """
    if isinstance(losses, str) or set(losses) - set(LOSSES):
        raise InvalidInputError(f"losses must be a list of some of {LOSSES}, got {losses!r}")
    for key, value, known in (
        ("matching", matching, (*MATCHING, None)),
        ("queries", queries, QUERIES),
        ("auxiliary", auxiliary, (*MATCHING, None)),
        ("auxiliary_queries", auxiliary_queries, QUERIES),
        ("constraint", constraint, CONSTRAINTS),
        ("query_reduction", query_reduction, REDUCTIONS),
    ):
        if value not in known:
            raise InvalidInputError(f"{key} must be one of {known}, got {value!r}")
    if queries == "teacher" and matching is None:
        raise InvalidInputError(
            'queries="teacher" is for distillation of the main queries, but matching is None: set matching="index"'
        )
    if auxiliary_queries == "own" and auxiliary is None:
        raise InvalidInputError('auxiliary_queries="own", but there is no auxiliary group: auxiliary is None')
    if (queries, auxiliary_queries) == ("teacher", "own"):
        raise InvalidInputError(
            'queries="teacher" with auxiliary_queries="own" would train queries that are not used at inference'
        )
    if isinstance(inherit, str):
        raise InvalidInputError(f'inherit must be a list of parts, such as ["encoder", "decoder"], got {inherit!r}')
    if negative := [f"{key}_weight" for key, value in weights.items() if value < 0]:
        raise InvalidInputError(f"weights must not be negative, got {', '.join(negative)} below 0")


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


def check_query_source(student: DetectionTransformer) -> None:
    """Raise ValueError if the student's queries depend on the image, so that it cannot have the teacher's."""
    source = student.query_source
    if isinstance(source, EncoderProposals) or isinstance(getattr(source, "content", None), QueryContent):
        raise InvalidInputError(
            'Distillation: queries="teacher" copies learned queries, but those of this detector depend on the image '
            f"({type(source).__name__})"
        )


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
