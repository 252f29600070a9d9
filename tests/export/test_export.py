"""Exported detectors give the detector's detections, and hold only what inference reads."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrx.export import DetectionGraph, check_same_detections, example_images, export_program, save_onnx, save_program
from detrx.modeling import DetectionTransformer
from tests.modeling.small import make_model
from tests.projects.contract import detector

SIZE = (64, 96)
MODELS = {
    "detr": lambda: detector("detr"),
    "deformable_detr_plus_plus": lambda: detector("deformable_detr_plus_plus"),
    "experts": lambda: make_model("mr_detr/mr_detr_pp_deformable_digits.py"),
    "routed": lambda: make_model("qr_detr/qr_deformable_detr_digits.py"),
}


class Read(TorchDispatchMode):
    """Which tensors are read."""

    def __init__(self):
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        self.storages |= {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return func(*args, **(kwargs or {}))


def read_in_inference(model: DetectionTransformer, images: Tensor) -> set[str]:
    with torch.no_grad(), Read() as read:
        model([{"image": image} for image in images])
    state = {**model.state_dict(), **dict(model.named_buffers())}
    return {name for name, tensor in state.items() if tensor.untyped_storage().data_ptr() in read.storages}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx(name: str, tmp_path: Path):
    import onnx

    model, file = MODELS[name]().eval(), tmp_path / "model.onnx"
    graph, images = DetectionGraph(model), example_images(1, SIZE, "uint8", 0)
    dynamic = name == "detr"
    program = export_program(graph, images, dynamic_batch=dynamic)
    assert not [node for node in program.graph.nodes if "detrx" in str(node.target)]
    names = {key.removeprefix("detector.") for key in program.state_dict}
    assert names <= read_in_inference(model, images)
    assert not [key for key in names if key.startswith("methods.")]
    numbers = sum(tensor.numel() for tensor in program.state_dict.values())

    batches = [images, example_images(3 if dynamic else 1, SIZE, "uint8", 1)]
    difference = save_onnx(
        program, file, {"classes": '["zero"]'}, lambda run: check_same_detections(graph, batches, run, tolerance=1e-5)
    )
    assert 0 < difference < 1e-5
    written = onnx.load(file)
    assert {entry.key: entry.value for entry in written.metadata_props} == {"classes": '["zero"]'}
    batch_sizes = {
        value.type.tensor_type.shape.dim[0].dim_param for value in (*written.graph.input, *written.graph.output)
    }
    assert batch_sizes == {"batch" if dynamic else ""}
    assert {node.domain for node in written.graph.node} == {""}
    assert str(Path(torch.__file__).parent) not in file.read_bytes().decode(errors="ignore")
    # Constants of the image size are the rest: positions and anchors.
    assert 0.9 * 4 * numbers < file.stat().st_size < 1.2 * 4 * numbers + 300_000


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_detections_are_those_of_the_detector(dtype: str):
    model = detector("deformable_detr_plus_plus").eval()
    images = example_images(2, SIZE, dtype, 0)
    with torch.no_grad():
        boxes, scores, labels = DetectionGraph(model)(images)
        expected = [each["instances"] for each in model([{"image": image} for image in images])]
    assert boxes.shape == (2, 100, 4) and labels.dtype == torch.int64
    for index, found in enumerate(expected):
        assert len(found) == 100
        torch.testing.assert_close(boxes[index], found.pred_boxes.tensor)
        torch.testing.assert_close(scores[index], found.scores)
        assert torch.equal(labels[index], found.pred_classes)


def test_any_number_of_images_and_float_input(tmp_path: Path):
    graph = DetectionGraph(detector("deformable_detr").eval())
    program = export_program(graph, example_images(1, SIZE, "float32", 0), dynamic_batch=True)
    file = tmp_path / "new" / "model.pt2"
    batches = [example_images(count, SIZE, "float32", count) for count in (1, 3)]
    difference = save_program(program, file, {"a": "b"}, lambda run: check_same_detections(graph, batches, run))
    assert difference < 1e-5
    files = {"metadata.json": ""}
    torch.export.load(file, extra_files=files)
    assert json.loads(files["metadata.json"]) == {"a": "b"}


def test_operators_may_be_kept():
    model = detector("deformable_detr").eval()
    program = export_program(DetectionGraph(model), example_images(1, SIZE, "uint8", 0), keep_operators=True)
    assert "detrx.ms_deform_attn_fused.default" in {str(node.target) for node in program.graph.nodes}
    check_same_detections(DetectionGraph(model), [example_images(1, SIZE, "uint8", 1)], program.module(), 1e-5)


def test_the_detector_is_not_changed_and_must_be_in_evaluation_mode():
    model = make_model("mr_detr/mr_detr_pp_deformable_digits.py")
    with pytest.raises(ValueError, match=r"evaluation mode: call model.eval\(\)"):
        DetectionGraph(model)
    keys = list(model.eval().state_dict())
    graph = DetectionGraph(model)
    assert list(model.state_dict()) == keys and len(model.methods)
    assert not [key for key in graph.state_dict() if ".methods." in key]


def test_a_file_that_fails_the_check_is_not_written(tmp_path: Path):
    model = detector("detr").eval()
    images = example_images(1, SIZE, "uint8", 0)
    program = export_program(DetectionGraph(model), images)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.decoder.heads.class_heads[-1].bias[0] += 1
    with pytest.raises(ValueError, match="the file was not written"):
        save_program(
            program, tmp_path / "m.pt2", {}, lambda run: check_same_detections(DetectionGraph(other), [images], run)
        )
    assert not list(tmp_path.iterdir())
