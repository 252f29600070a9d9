"""Where tests of CUDA kernels run them: `cuda` is a GPU or its emulation, `gpu` and `emulated` are one of the two."""

import zlib
from collections.abc import Iterator

import pytest
import torch

from detrx.ops import has_kernel
from tests.cuda_on_cpu.build import unavailable
from tests.cuda_on_cpu.seeds import SEED_VARIABLE, base_seed
from tests.ops.places import Place

# The seed of the emulated schedule: always the same, and one that differs from run to run (see `base_seed`).
SEEDS = ["emulated", "emulated-random"]


@pytest.fixture
def gpu() -> Place:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if not has_kernel("ms_deform_attn", "cuda"):
        pytest.skip("no compiled CUDA kernels")
    return Place("cuda")


@pytest.fixture(params=SEEDS)
def emulated(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield from _emulated(request)


@pytest.fixture(params=[pytest.param("gpu", marks=pytest.mark.gpu), *SEEDS])
def cuda(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "gpu":
        yield request.getfixturevalue("gpu")
    else:
        yield from _emulated(request)


@pytest.fixture(params=[pytest.param("gpu", marks=pytest.mark.gpu), "emulated"])
def cuda_once(request: pytest.FixtureRequest) -> Iterator[Place]:
    """`cuda` for what takes long: emulated with one seed only."""
    if request.param == "gpu":
        yield request.getfixturevalue("gpu")
    else:
        yield from _emulated(request)


def _emulated(request: pytest.FixtureRequest) -> Iterator[Place]:
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    base = 0 if request.param == "emulated" else base_seed()
    if base:
        request.node.add_report_section("setup", "seed", f"{SEED_VARIABLE}={base}")
    # A seed of its own for every test, so that it needs no other to be repeated.
    place = Place("cpu", base + zlib.crc32(request.node.originalname.encode()))
    yield place
    assert place.calls > 0, "the test called no operator in `place.kernels()`"
