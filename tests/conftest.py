"""Shared test set-up: one thread per process, seeds, profiles of property tests, and the golden fixtures."""

import importlib.util
import os
from pathlib import Path

# Before torch is imported: two test processes on two cores must not fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from tests.cuda_on_cpu.seeds import SEED_VARIABLE, base_seed

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if importlib.util.find_spec("hypothesis") is not None:
        _set_hypothesis_profile()


def _set_hypothesis_profile() -> None:
    """HYPOTHESIS_PROFILE=long tries many new examples; by default, property tests try few, and always the same."""
    from hypothesis import HealthCheck, settings

    common = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("short", max_examples=50, derandomize=True, **common)
    settings.register_profile("long", max_examples=2000, derandomize=False, print_blob=True, **common)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


def pytest_report_header(config: pytest.Config) -> str:
    return f"{SEED_VARIABLE}={base_seed()} repeats the random schedules of emulated CUDA kernels"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of the golden fixtures: $DETRX_GOLDEN, default `../shared/golden` beside the project."""
    path = Path(os.environ.get("DETRX_GOLDEN") or ROOT.parent / "shared" / "golden")
    if not path.is_dir():
        pytest.skip(f"golden fixtures not found in {path} (set DETRX_GOLDEN)")
    return path
