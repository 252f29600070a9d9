"""Prepares a folder for a GPU machine that has no compiler and no network: `tools/gpu_folder.py`.

In it are the project with its extension and the published baseline, compiled for the machine's Python, PyTorch and GPU,
and the packages that the machine lacks. Whatever is not in it has to be installed there.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "fvcore",
    "iopath",
    "omegaconf",
    "antlr4-python3-runtime==4.9.*",
    "hydra-core",
    "pycocotools",
    "yacs",
    "termcolor",
    "portalocker",
)
COMPILED = ("deformops==3.0.1",)
PROJECT, SITE, RUN, MANIFEST = "project", "site", "run.sh", "manifest.json"
MIB = 2**20
ABOUT = """
import json, platform, sys, torch
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
                  "tag": sys.implementation.cache_tag, "machine": platform.machine()}))
"""
CHECK = """
import torch, published
from detrx.ops import extension_info, has_kernel, ms_deform_attn, operators
missing = [name for name in operators() if has_kernel(name, "cpu") and not has_kernel(name, "cuda")]
assert "error" not in extension_info() and not missing, (extension_info(), missing)
value, shapes, starts = torch.arange(8.0).view(1, 4, 1, 2), torch.tensor([[2, 2]]), torch.tensor([0])
output = ms_deform_attn(value, shapes, starts, torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1))
assert output.flatten().tolist() == [3.0, 4.0], output
assert published.extension().forward
"""
RUN_SCRIPT = """#!/bin/sh
# Runs the check of the GPU; the arguments are those of {project}/tools/gpu_check.py.
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/{project}:$here/{site}${{PYTHONPATH:+:$PYTHONPATH}}"
exec "${{PYTHON:-python3}}" "$here/{project}/tools/gpu_check.py" "$@"
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_folder.py",
        description="Prepares a folder with everything that `gpu_check.py` needs on a GPU machine without compiler and "
        "network, and prints the command to run there. The interpreter given here has to have the Python and PyTorch "
        "of that machine, and what builds packages: setuptools, wheel, ninja, numpy. Packages come from where pip is "
        "configured to look.",
    )
    parser.add_argument("--python", type=Path, required=True, metavar="FILE", help="the interpreter to build with")
    parser.add_argument("--out", type=Path, default=ROOT / "gpu_folder", metavar="FOLDER", help="default: gpu_folder")
    parser.add_argument("--arch", default="9.0", help="compute capability of the GPU (default: 9.0)")
    parser.add_argument(
        "--packages",
        nargs="*",
        default=list(PACKAGES),
        metavar="NAME",
        help=f"that the machine lacks, with all that they need and it lacks, too (default: {' '.join(PACKAGES)})",
    )
    parser.add_argument(
        "--compiled-packages",
        nargs="*",
        default=list(COMPILED),
        metavar="NAME",
        help=f"packages with CUDA sources, compiled from them (default: {' '.join(COMPILED)})",
    )
    parser.add_argument("--limit", type=float, default=64, metavar="MIB", help="of the folder (default: 64)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    python = str(args.python.absolute())  # not resolved: a link in an environment stands for that environment
    about = json.loads(run([python, "-c", ABOUT]).splitlines()[-1])
    if not about["cuda"]:
        raise SystemExit(f"--python {args.python}: its torch {about['torch']} is built without CUDA")
    clear(args.out)
    environment = build_environment(python, args.arch)
    copy_project(args.out / PROJECT)
    build_extension(python, environment, args.out / PROJECT)
    build_baseline(python, environment, args.out / PROJECT)
    install(python, environment, args.out / SITE, args.packages, args.compiled_packages)
    strip(args.out)
    script = args.out / RUN
    script.write_text(RUN_SCRIPT.format(project=PROJECT, site=SITE), encoding="utf-8")
    script.chmod(0o755)
    paths = os.pathsep.join(str(args.out.absolute() / each) for each in (PROJECT, f"{PROJECT}/benchmarks", SITE))
    run([python, "-c", CHECK], cwd=args.out, env={**os.environ, "PYTHONPATH": paths})
    manifest = about | {"arch": args.arch, "commit": commit(), "packages": [*args.packages, *args.compiled_packages]}
    (args.out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    report_size(args.out, args.limit)
    print(f"There, with Python {about['python']} and torch {about['torch']}:")
    print(f"  sh {args.out.name}/{RUN} --call 1 --out FOLDER")


def run(command: list[str], **options: object) -> str:
    """Standard output of a command; its errors, and the end of the program, if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, **options, encoding="utf-8")
    if result.returncode:
        print(result.stdout[-3000:], result.stderr[-6000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"failed with {result.returncode}: {' '.join(command)[:300]}")
    return result.stdout


def clear(folder: Path) -> None:
    """Remove what an earlier call left there, but nothing else."""
    if folder.exists():
        if not (folder / RUN).is_file() and any(folder.iterdir()):
            raise SystemExit(
                f"--out {folder} has other files in it; expected a new or empty folder, or one of this tool"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def build_environment(python: str, arch: str) -> dict[str, str]:
    """For compiling with that interpreter; ninja may be beside it."""
    path = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "TORCH_CUDA_ARCH_LIST": arch, "DETRX_BUILD_CUDA": "1"}
    environment.pop("PYTHONPATH", None)
    home = environment.get("CUDA_HOME") or toolkit(shutil.which("nvcc"))
    if home is None:
        raise SystemExit("nvcc was not found: on PATH or in CUDA_HOME")
    return environment | {"CUDA_HOME": home, "MAX_JOBS": environment.get("MAX_JOBS", "1")}


def toolkit(nvcc: str | None) -> str | None:
    """The folder of the toolkit of an nvcc, which may be a script or a link elsewhere."""
    if nvcc is None:
        return None
    said = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, encoding="utf-8"
    )
    top = re.search(r"^#\$ TOP=(.+)$", said.stdout + said.stderr, re.MULTILINE)
    return str(Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1])


def copy_project(target: Path) -> None:
    """The files of the project that git tracks, or would."""
    listing = run(["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"])
    for name in filter(None, listing.split("\0")):
        source = ROOT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def build_extension(python: str, environment: Mapping[str, str], project: Path) -> None:
    """Objects stay in the build folder of the checkout, so that the next time only changes are compiled."""
    print("building the extension", flush=True)
    run([python, "setup.py", "build_ext", "--build-lib", str(project)], cwd=ROOT, env=environment)


def build_baseline(python: str, environment: Mapping[str, str], project: Path) -> None:
    print("building the published baseline", flush=True)
    folder = project.parent / "baseline"
    folder.mkdir()
    code = f"import pathlib, published; published.build(pathlib.Path({str(folder)!r}))"
    run([python, "-c", code], cwd=ROOT / "benchmarks", env=environment)
    for library in folder.glob("*.so"):
        shutil.move(library, project / "benchmarks" / library.name)
    shutil.rmtree(folder)


def install(python: str, environment: Mapping[str, str], site: Path, packages: list[str], compiled: list[str]) -> None:
    """Without what they need: that is named, or there already. Versions are those of requirements.txt."""
    print("installing packages", flush=True)
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(site)]
    if packages:
        run([*command, "--constraint", str(ROOT / "requirements.txt"), *packages], env=environment)
    for name in compiled:
        only = ["--no-build-isolation", "--no-binary", re.split(r"[=<>~!\[]", name)[0]]
        run([*command, *only, name], env={**environment, "DEFORMOPS_EXTENSIONS": "all"})
    shutil.rmtree(site / "bin", ignore_errors=True)


def strip(folder: Path) -> None:
    """Remove what only debuggers read."""
    if tool := shutil.which("strip"):
        for library in folder.rglob("*.so*"):
            run([tool, "--strip-debug", str(library)])


def commit() -> str:
    """Of the checkout, with "+" behind it if there are changes."""
    return run(["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]).strip()


def report_size(folder: Path, limit: float) -> None:
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    total = sum(sizes.values()) / MIB
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:8]
    print(f"{folder}: {total:.1f} MiB in {len(sizes)} files; the largest:")
    for path in largest:
        print(f"  {sizes[path] / MIB:6.2f} MiB  {path.relative_to(folder)}")
    if total > limit:
        raise SystemExit(f"{folder} has {total:.1f} MiB, more than the {limit:g} MiB of --limit")
