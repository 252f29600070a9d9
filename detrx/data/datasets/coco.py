"""COCO files as dataset dicts, with one clear error for whatever is wrong with the file."""

import contextlib
import difflib
import os
from collections.abc import Iterator

from detrx.coco.annotations import parse_coco, read_json
from detrx.coco.problems import Findings, Problem
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.d2.data import get_detection_dataset_dicts as _get_detection_dataset_dicts
from detrx.data.check.boxes import check_boxes
from detrx.errors import InvalidInputError


def load_coco(json_file: str | os.PathLike, image_root: str | os.PathLike, name: str | None = None) -> list[dict]:
    """Read a COCO annotation file. The records are those of Detectron2's `load_coco_json`.

    Ids that occur twice, unknown categories and malformed entries are errors. There is a warning, once per kind, about
    what can be coped with: annotations of images that are not listed, names that occur twice, an annotation id 0.
    Category ids may have gaps.

    Args:
        json_file: COCO "instances" annotations.
        image_root: folder that the file names in it are relative to.
        name: dataset name, whose metadata gets the class names, and category ids become 0, 1, ... in the order of the
            ids; None leaves category ids as they are in the file.

    Returns:
        Dataset dicts, ordered by image id: `file_name`, `height`, `width`, `image_id`, `annotations` (boxes XYWH in
        pixels).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its content is not what it should be; the message names the file and the first entry at fault.
    """
    findings = Findings()
    path = os.fspath(json_file)
    if _is_missing(path):
        raise FileNotFoundError(_missing(path, name))
    records, categories = parse_coco(read_json(path, findings), image_root, findings)
    check_classes(list(categories.values()), name, findings)
    if (problem := findings.first_error()) is not None:
        raise InvalidInputError(f"annotation file {path}: {problem}")
    findings.log_warnings(path)
    if name is not None:
        contiguous = {category_id: k for k, category_id in enumerate(categories)}
        for record in records:
            for annotation in record["annotations"]:
                annotation["category_id"] = contiguous[annotation["category_id"]]
        facts = {"thing_classes": list(categories.values()), "thing_dataset_id_to_contiguous_id": contiguous}
        MetadataCatalog.get(name).set(**facts)
    return records


def get_detection_dataset_dicts(names: str | list[str], filter_empty: bool = True) -> list[dict]:
    """Detectron2's function of this name, with clear errors for unknown datasets and faulty annotation files.

    Boxes without area, and boxes outside of their image, are reported in one warning per kind; `DetectionMapper` leaves
    them out, or clips them.

    Args:
        names: one or several registered datasets with the same classes, to be concatenated.
        filter_empty: leave out images without annotations (other than crowds), as training wants.

    Raises:
        ValueError: a name is not registered, or the annotation file is faulty (see `load_coco`).
        FileNotFoundError: the annotation file of a dataset does not exist.
    """
    names = [names] if isinstance(names, str) else list(names)
    check_registered(names)
    files = {name: MetadataCatalog.get(name).get("json_file") for name in names}
    with contextlib.ExitStack() as stack:
        for name, json_file in files.items():
            if json_file and MetadataCatalog.get(name).get("evaluator_type", "coco") == "coco":  # LVIS files are others
                stack.enter_context(_clear_errors(os.fspath(json_file), name))
        records = _get_detection_dataset_dicts(names, filter_empty=filter_empty)
    findings = Findings()
    check_boxes(records, findings)
    source = ", ".join(f"dataset {name} ({json_file})" if json_file else name for name, json_file in files.items())
    if (problem := findings.first_error()) is not None:
        raise InvalidInputError(f"{source}: {problem}")
    findings.log_warnings(source)
    return records


def check_registered(names: list[str]) -> None:
    """Raise a ValueError, which lists similar names, if one of these is not that of a registered dataset."""
    for name in names:
        if name not in DatasetCatalog:
            known = sorted(DatasetCatalog)
            near = difflib.get_close_matches(name, known, n=3) or known
            raise InvalidInputError(f"dataset {name!r} is not registered; did you mean one of: {', '.join(near)}?")


def check_classes(found: list[str], name: str | None, findings: Findings) -> None:
    """Find out whether these are the classes that the dataset `name` is registered with, if it is with any."""
    classes = MetadataCatalog.get(name).get("thing_classes") if name else None
    if classes is not None and list(classes) != found:
        why = f"its categories {found} are not the classes {list(classes)} that dataset {name!r} is registered with"
        findings.add(Problem.OTHER_CLASSES, why)


@contextlib.contextmanager
def _clear_errors(json_file: str, name: str) -> Iterator[None]:
    """Replace an exception of Detectron2's reader by one that says what is wrong with the file, if something is."""
    try:
        yield
    except Exception as error:
        if "://" in json_file:  # not a local file: nothing to look at here
            raise
        if _is_missing(json_file):
            raise FileNotFoundError(_missing(json_file, name)) from error
        findings = Findings()
        _, categories = parse_coco(read_json(json_file, findings), "", findings)
        check_classes(list(categories.values()), name, findings)
        if (problem := findings.first_error()) is None or str(error).startswith(f"annotation file {json_file}:"):
            raise
        raise InvalidInputError(f"annotation file {json_file}: {problem}") from error


def _is_missing(json_file: str) -> bool:
    return "://" not in json_file and not os.path.isfile(json_file)


def _missing(json_file: str, name: str | None) -> str:
    datasets = os.environ.get("DETECTRON2_DATASETS") or "datasets"
    return f"annotation file {json_file} of dataset {name!r} does not exist (DETECTRON2_DATASETS is {datasets!r})"
