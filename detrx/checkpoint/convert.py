"""Converting the weights of other code bases for our models, with a report on every tensor."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from os import PathLike

import torch
from torch import Tensor, nn

from detrx.coco.classes import COCO_CATEGORIES

from . import detrex, efficientnet, huggingface, original
from .files import CheckpointError, read_weights
from .rules import Report, apply_rules

__all__ = ["FORMATS", "CheckpointConversionError", "convert_checkpoint", "detect_format"]

FORMATS = {"detrex": detrex, "efficientnet": efficientnet, "huggingface": huggingface, "original": original}
"""One module for each format: `matches(keys)` recognises it, `rules(source, model)` maps its keys to ours, and
`settings(source)` gives the hyper-parameters in which our configs may differ, by attribute of our model.
"""

_OTHERS = {
    "mmdetection": r"bbox_head\.(cls_branches|reg_branches|fc_cls|fc_reg|transformer)\.",
    "Detectron2": r"(backbone\.bottom_up|proposal_generator|roi_heads)\.",
}
"""What names of other code bases begin with."""

_CLASS_HEAD = re.compile(r".*\bclass_heads?\b.*")
_LABEL_EMBEDDING = re.compile(r".*\blabel_\w+\b.*")
_STATISTIC = re.compile(r".*\.num_batches_tracked")
_SHOWN = 10


class CheckpointConversionError(CheckpointError):
    """A checkpoint cannot be converted for a model. The attribute `report` has the details, if the conversion began."""

    def __init__(self, message: str, report: Report | None = None):
        super().__init__(message)
        self.report = report


def convert_checkpoint(
    source: str | PathLike | Mapping[str, Tensor],
    model: nn.Module,
    format: str | None = None,
    skip: Sequence[str] = (),
    allow_pickle: bool = False,
) -> tuple[dict[str, Tensor], Report]:
    """Weights of another code base under the names and with the shapes of `model`.

    If the model has 80 classes, class heads for the 91 COCO ids are cut to the 80 ids in use.

    Args:
        source: what :func:`read_weights` reads, or a state dict.
        model: a detector of the same kind and sizes, or timm's EfficientNet.
        format: key of `FORMATS`; default: recognised by the keys.
        skip: regular expressions. Keys of the checkpoint and tensors of the model are left out if one of them matches
            their whole name.
        allow_pickle: see :func:`read_weights`.

    Returns:
        a state dict with exactly the tensors of `model`, except those in `skip`, and the report.

    Raises:
        CheckpointError: the source cannot be read.
        CheckpointConversionError: the format is not recognised, or is that of a detector, and the model is none; or a
            tensor has no counterpart, no source, another shape, or two sources with different values. The report lists
            all of them, the message the first ten.
    """
    where = "the state dict"
    if not isinstance(source, Mapping):
        where = f"checkpoint {source}"
        source = read_weights(source, allow_pickle)
    expected = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    name = format or detect_format(source, expected, where)
    if name not in FORMATS:
        raise CheckpointConversionError(f"unknown format {name!r}, expected one of {', '.join(FORMATS)}")
    if FORMATS[name] is not efficientnet and not hasattr(model, "backbone"):
        raise CheckpointConversionError(f"{where} ({name} format) has weights of a detector, but the model is none")
    report = Report(name)

    left_out = re.compile("|".join(f"(?:{pattern})" for pattern in skip) or r"(?!)")
    report.skipped = [key for key in (*source, *expected) if left_out.fullmatch(key)]
    source = {key: tensor for key, tensor in source.items() if not left_out.fullmatch(key)}

    converted = apply_rules(source, FORMATS[name].rules(source, model), list(expected), report)
    for key in [k for k, names in report.superfluous.items() if all(map(left_out.fullmatch, names))]:
        report.skipped.append(key)
        del report.superfluous[key]
    converted = {name: tensor for name, tensor in converted.items() if not left_out.fullmatch(name)}
    expected = {name: tensor for name, tensor in expected.items() if not left_out.fullmatch(name)}
    _select_classes(converted, expected, model, report)
    _complete(converted, expected, report)
    report.notes += _different_settings(FORMATS[name].settings(source), model)
    if problems := report.problems:
        shown = problems[:_SHOWN] + [f"... and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
        raise CheckpointConversionError(f"{where} ({name} format) does not fit the model: {'; '.join(shown)}", report)
    # Chunks and copies must not share memory, and the types are those of the model.
    return {
        name: converted[name].to(tensor.dtype, memory_format=torch.contiguous_format, copy=True)
        for name, tensor in expected.items()
    }, report


def detect_format(keys: Collection[str], names: Collection[str] = (), where: str = "the checkpoint") -> str:
    """The format of a checkpoint, recognised by its keys.

    Args:
        names: tensors of the model that it is for.
        where: what it is called in errors.

    Raises:
        CheckpointConversionError: the format is unknown.
    """
    found = [name for name, module in FORMATS.items() if module.matches(keys)]
    if len(found) == 1:
        return found[0]
    if owner := owner_of(keys):
        raise CheckpointConversionError(
            f"{where} has the names of {owner}, which cannot be converted; known formats are {', '.join(FORMATS)}"
        )
    ours = sum(key in names for key in keys)
    if ours > len(keys) / 2:
        raise CheckpointConversionError(
            f"{where} already has our names ({ours} of its {len(keys)} tensors): it needs no conversion, "
            "train.init_checkpoint takes it"
        )
    some = ", ".join(list(keys)[:5])
    raise CheckpointConversionError(f"{where} has no known format ({', '.join(FORMATS)}); its first keys are {some}")


def owner_of(keys: Iterable[str]) -> str | None:
    """The code base whose names a checkpoint has, if it is one that cannot be converted; otherwise None."""
    return next((owner for owner, pattern in _OTHERS.items() if any(map(re.compile(pattern).match, keys))), None)


def _select_classes(
    converted: dict[str, Tensor], expected: Mapping[str, Tensor], model: nn.Module, report: Report
) -> None:
    """Cut tensors with one row for each of the 91 COCO ids to the rows of the 80 classes, if the model has 80.

    DETR's class head ends with a row for "no object", which stays last.
    """
    # Here: importing detrx.data registers all datasets.
    ids = list(COCO_CATEGORIES)
    # Of the encoder's class head only row 0 was trained, to mean "an object", so it is kept as class 0.
    objectness = getattr(getattr(model, "query_source", None), "rank_by", None) == "first_class"
    cut = []
    for name, tensor in converted.items():
        if name not in expected or tensor.ndim == 0:
            continue
        sizes = (len(tensor), len(expected[name]))
        if _CLASS_HEAD.fullmatch(name):
            rows = {(91, 80): ids, (92, 81): [*ids, 91]}.get(sizes)
        elif _LABEL_EMBEDDING.fullmatch(name):
            rows = {(91, 80): ids, (92, 80): ids, (92, 81): [*ids, 91]}.get(sizes)
        else:
            continue
        if rows is None:
            continue
        if objectness and name.startswith("query_source."):
            rows = [0, *rows[1:]]
        converted[name] = tensor[rows]
        cut.append(name)
    if cut:
        report.notes.append(f"cut from 91 COCO ids to the 80 classes: {', '.join(cut)}")


def _complete(converted: dict[str, Tensor], expected: Mapping[str, Tensor], report: Report) -> None:
    """Compare with the model, and fill in statistics that checkpoints may lack."""
    for name, tensor in expected.items():
        if name in converted:
            if converted[name].shape != tensor.shape:
                report.wrong_shapes.append((name, tuple(converted[name].shape), tuple(tensor.shape)))
        elif _STATISTIC.fullmatch(name):
            converted[name] = tensor
            report.kept[name] = "counts training steps"
        elif name not in report.incomplete:
            report.missing.append(name)


def _different_settings(settings: Mapping[str, float], model: nn.Module) -> list[str]:
    notes = []
    for path, value in settings.items():
        try:
            ours = attrgetter(path)(model)
        except AttributeError:
            continue
        if ours != value:
            notes.append(f"the checkpoint is for {path} = {value}, the model has {ours}: results will differ")
    return notes
