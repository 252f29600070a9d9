"""Write exported detectors to files: atomically, and only after comparing them with the detector."""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from detrx.atomic import replacing
from detrx.errors import InvalidInputError, MissingImportError, first_line

from .graph import DetectionGraph

Check = Callable[[Callable[[Tensor], Sequence[Tensor]]], float]
"""Takes a function that runs the written graph on images. Returns the difference of its detections to those of the
detector, or raises an error if it is too large."""


def save_program(program: ExportedProgram, file: Path, metadata: Mapping[str, str], check: Check) -> float:
    """Write a .pt2 file for `torch.export.load`, with `metadata` as the extra file "metadata.json".

    Returns:
        the result of `check`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, suffix=file.suffix) as temporary:
        with _quiet():
            torch.export.save(program, temporary, extra_files={"metadata.json": json.dumps(dict(metadata))})
            loaded = torch.export.load(temporary).module()
        return check(loaded)


def save_onnx(program: ExportedProgram, file: Path, metadata: Mapping[str, str], check: Check) -> float | None:
    """Write an ONNX file, with `metadata` in its metadata_props.

    Returns:
        the result of `check`; None if onnxruntime is not installed, and the file was not checked.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: ONNX has no counterpart of an operation.
    """
    check_onnx_packages()
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, CommonSubexpressionEliminationPass

    with _quiet():
        try:
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=["images"],
                output_names=DetectionGraph.NAMES,
            )
        except torch.onnx.OnnxExporterError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise InvalidInputError(f"the detector cannot be written in ONNX: {first_line(cause)}") from error
        assert onnx_program is not None  # with `dynamo`
        # Without this, some rewrite rules of the optimizer give two initialisers of a duplicated computation one name.
        CommonSubexpressionEliminationPass()(onnx_program.model)
        onnx_program.optimize()
        shape = onnx_program.model.graph.inputs[0].shape
        assert shape is not None  # that of the images, (batch, 3, height, width)
        if not isinstance(batch := shape[0], int):
            onnx_program.rename_axes({batch: "batch"})
        ClearMetadataAndDocStringPass()(onnx_program.model)  # source locations of nodes, with paths of this machine
    onnx_program.model.metadata_props.update(metadata)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, suffix=file.suffix) as temporary:
        onnx_program.save(temporary)
        return check(onnx_runner(temporary)) if is_installed("onnxruntime") else None


def onnx_runner(file: str | os.PathLike) -> Callable[[Tensor], list[Tensor]]:
    """A function that runs an ONNX file in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(each) for each in session.run(None, {"images": images.cpu().numpy()})]


def check_onnx_packages() -> None:
    """Check that the packages for ONNX export are installed.

    Raises:
        ImportError: packages are missing; the message says how to install them.
    """
    if missing := [name for name in ("onnx", "onnxscript") if not is_installed(name)]:
        raise MissingImportError(
            f"export to ONNX needs {' and '.join(missing)}, to be installed with: pip install {' '.join(missing)}"
        )


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings and log messages of torch's exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
