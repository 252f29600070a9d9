"""What an issue report needs to know about an installation: `python -m detrx.collect_env`."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from detrx.console import print_anything

PACKAGES = ("torchvision", "timm", "numpy", "fvcore", "iopath", "omegaconf", "hydra-core", "pycocotools", "scipy")
VARIABLES = ("DETRX_", "DETECTRON2_", "TORCH_", "CUDA_", "OMP_", "MKL_", "ATEN_", "NCCL_")


def collect() -> dict[str, str]:
    """Name -> value, in the order of the report. Never fails: what cannot be told says why."""
    report = {
        "detrx": _try(_detrx),
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "torch": _try(_torch),
        "CPU": _try(_cpu),
        "GPU": _try(_gpu),
        "nvcc": _try(_nvcc),
        "Detectron2 provider": _try(_provider),
        **{package: _version(package) for package in PACKAGES},
        **kernels(),
        "extension": _try(_extension),
    }
    report["environment"] = ", ".join(
        f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)
    )
    return report


def kernels() -> dict[str, str]:
    """For each operator, the devices it has a compiled kernel for."""

    def devices(name: str) -> str:
        from detrx.ops import has_kernel

        found = [device for device in ("cpu", "cuda") if has_kernel(name, device)]
        return ", ".join(found) or "none: runs as PyTorch code"

    try:
        from detrx.ops import operators

        return {f"kernel {name}": devices(name) for name in operators()}
    except Exception as error:
        return {"kernels": _reason(error)}


def _try(function: Callable[[], str]) -> str:
    try:
        return function()
    except Exception as error:
        return _reason(error)


def _reason(error: Exception) -> str:
    return f"unknown ({type(error).__name__}: {error})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _detrx() -> str:
    import detrx

    return f"{detrx.__version__} ({Path(detrx.__file__).parent})"


def _torch() -> str:
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"{torch.__version__} ({cuda}, {Path(torch.__file__).parent})"


def cpu_name() -> str:
    """Model of the CPU, or its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        if lines:
            return lines[0].split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine(device: str) -> dict[str, object]:
    """Where, when and with what figures were measured on `device`, "cpu" or "cuda"."""
    import torch

    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu() -> str:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        names.append(f"{properties.name} ({memory:.0f} GiB, sm_{properties.major}{properties.minor})")
    return "; ".join(names)


def _nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None:
        return "not found"
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True, encoding="utf-8").stdout
    return f"{output.strip().splitlines()[-1]} ({nvcc})"


def _provider() -> str:
    from detrx.d2 import provider

    name = provider()
    return f"{name} {_version('detectron2')}" if name == "detectron2" else name


def _extension() -> str:
    from detrx.ops import extension_info

    return ", ".join(f"{key} {value}" for key, value in extension_info().items())


def main() -> None:
    print_anything()
    parser = argparse.ArgumentParser(prog="python -m detrx.collect_env", description=__doc__)
    parser.add_argument("--kernels", action="store_true", help="only say which kernels were built")
    report = kernels() if parser.parse_args().kernels else collect()
    width = max(map(len, report))
    for name, value in report.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
