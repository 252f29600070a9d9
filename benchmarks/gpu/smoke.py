"""What the device is, and every kernel once, against the CPU."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from harness import copy_bytes_per_ms

from detrx.collect_env import cpu_name
from detrx.ops import extension_info, has_kernel, operators

from .context import Context
from .launches import launches

MANIFEST = Path(__file__).resolve().parents[3] / "manifest.json"
"""Beside the project in a folder that `gpu.pack` has prepared: what it is made of."""


def run(context: Context) -> None:
    report = context.report
    report.fact(python=platform.python_version(), executable=sys.executable, torch=torch.__version__, cpu=cpu_name())
    report.fact(cuda=torch.version.cuda, extension=extension_info())
    report.fact(**device_facts(context.device))
    if MANIFEST.is_file():
        report.fact(folder=json.loads(MANIFEST.read_text(encoding="utf-8")))
    for name in operators():
        if not has_kernel(name, context.device) and has_kernel(name, "cpu"):
            report.fail(f"{name} has no compiled kernel for {context.device}: {extension_info()}")
    for launch in context.in_time(launches(), "launches"):
        row: dict[str, object] = {"launch": launch.name}
        try:
            row["of tolerance"] = launch.difference(context.device)
            if row["of tolerance"] > 1:
                report.fail(f"{launch.name}: {row['of tolerance']:.2f} times the tolerance from the CPU")
        except Exception as error:
            report.fail(f"{launch.name}: {type(error).__name__}: {str(error)[:300]}")
        report.row("launches", row)
    speed = copy_bytes_per_ms(context.device, 16 if context.tiny else 1024)
    report.fact(copy_gb_per_s=speed / 1e6)


def device_facts(device: str) -> dict[str, object]:
    tools = {name: shutil.which(name) for name in ("nvcc", "compute-sanitizer", "nvidia-smi")}
    if device != "cuda":
        return {"gpu": None, **tools}
    properties = torch.cuda.get_device_properties(0)
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit",
        "--format=csv,noheader",
    ]
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": properties.total_memory / 2**30,
        "l2_mib": properties.L2_cache_size / 2**20,
        "driver, clocks, power": subprocess.run(query, capture_output=True, text=True, encoding="utf-8").stdout.strip()
        if tools["nvidia-smi"]
        else None,
        **tools,
    }
