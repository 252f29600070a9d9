"""What the stages do on a GPU only, on a pretended one: events, waits, memory, the baselines that need CUDA."""

import contextlib
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from tests.pretended_cuda.harness import on_pretended_cuda, pads_one_image, waits

PROPERTIES = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, L2_cache_size=50 * 2**20
)


class Event:
    """With the clock of the host, on which all work is done at once."""

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: "Event") -> float:
        return 1e3 * (other.at - self.at)


class Published:
    """The functions of the compiled baseline."""

    @staticmethod
    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        return torch.ops.detrx.ms_deform_attn(*inputs)

    @staticmethod
    def backward(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.ops.detrx.ms_deform_attn_backward(*inputs)


@contextlib.contextmanager
def timed_gpu() -> Iterator[None]:
    import published

    memory = dict.fromkeys(("memory_allocated", "max_memory_allocated"), lambda *_: 0)
    others = {"Event": Event, "_sleep": lambda cycles: None, "get_device_properties": lambda *_: PROPERTIES}
    others |= {"get_device_name": lambda *_: PROPERTIES.name, "reset_peak_memory_stats": lambda *_: None}
    with mock.patch.multiple(torch.cuda, **memory, **others), mock.patch.object(published, "extension", Published):
        yield


def tables_of(stage: str, **options: object) -> dict[str, list[dict]]:
    """Run a stage in tiny sizes; its tables."""
    from gpu.context import Context, Report

    with tempfile.TemporaryDirectory() as folder, timed_gpu():
        report = Report(Path(folder, "report.json"), stage)
        importlib.import_module(f"gpu.{stage}").run(
            Context("cuda", True, time.monotonic() + 300, Path(folder), report), **options
        )
        content = json.loads(report.path.read_text())
    assert content["failures"] == [] and not any("missing" in note for note in content["notes"]), content
    return content["tables"]


@pytest.fixture
def paths(request: pytest.FixtureRequest) -> list[str]:
    """What the process of the pretended GPU has to import from."""
    root = request.config.rootpath
    return [str(root / "benchmarks"), str(Path(__file__).with_name("substitutes"))]


@contextlib.contextmanager
def importable(paths: list[str]) -> Iterator[None]:
    with mock.patch.object(sys, "path", [*paths, *sys.path]):
        yield


@on_pretended_cuda
def test_every_launch(paths):
    with importable(paths):
        from gpu import smoke

        with mock.patch.object(smoke, "has_kernel", lambda *_: True):
            launches = tables_of("smoke")["launches"]
    assert len(launches) == 29 and all(row["of tolerance"] <= 1 for row in launches)


@on_pretended_cuda
def test_speed(paths):
    with importable(paths):
        rows = tables_of("speed", full=True)
        assert all(row["published fwd+bwd ms"] > 0 for row in rows["attention"]) and len(rows["deterministic"]) == 2
        (first, *_) = tables_of("speed", rivals="deformops")["attention"]
    assert first["deformops triton fwd ms"] > 0 and first["deformops cuda fwd+bwd ms"] > 0


@on_pretended_cuda
def test_large_inputs_are_made_on_the_gpu(paths):
    with importable(paths):
        import attention

        for form in attention.OPERATORS:
            with waits() as found:
                value, shapes, starts, *others = attention.make_inputs(
                    form, "decoder300", 1, "cuda", torch.bfloat16, ((2, 3), (1, 1))
                )
            assert all(x.is_cuda for x in (value, shapes, starts, *others))
            assert found.count <= 1, found  # the sizes of the levels


@pads_one_image
@on_pretended_cuda
def test_training(paths):
    with importable(paths):
        from gpu import training

        some = {name: training.DIGITS[name] for name in ("Deformable-DETR++",)}
        with mock.patch.object(training, "DIGITS", some):
            rows = tables_of("training")["steps"]
    assert [row["training step"] for row in rows] == list(some) and all(row["ms"] > 0 for row in rows)


@pads_one_image
@on_pretended_cuda
def test_layers_and_inference(paths):
    with importable(paths):
        assert {name: len(rows) for name, rows in tables_of("layers").items()} == {
            "decoder": 1, "experts": 2, "routing": 2
        }  # fmt: skip
        assert len(tables_of("inference")["inference"]) == 2
