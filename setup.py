"""Builds and installs detrx, with its kernels compiled against the PyTorch of the environment it is installed into.

DETRX_BUILD_EXT=0          no compiled kernels at all
DETRX_BUILD_CUDA=0|1       without or with CUDA kernels; default: with, where torch sees a GPU and nvcc is found
TORCH_CUDA_ARCH_LIST       GPU architectures; default: those of the GPUs in sight, else 8.0;9.0+PTX
MAX_JOBS                   compilers run at the same time
CUDA_HOME                  toolkit, where it is not the one of the nvcc on PATH
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "8.0;9.0+PTX"
# Commands that only ask for metadata: they need no torch import, which takes seconds.
METADATA_COMMANDS = {"egg_info", "dist_info", "sdist", "--name", "--version", "--help", "--help-commands", "clean"}


def fail(message: str) -> None:
    raise SystemExit(f"\ndetrx: error: {message}\n")


def say(message: str) -> None:
    print(f"detrx: {message}", file=sys.stderr, flush=True)


def switch(name: str) -> bool | None:
    """The environment variable `name`, 0 or 1; None where it is not set."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        fail(f"{name} is {value!r}, expected 0 or 1")
    return None if value == "" else value == "1"


def check_max_jobs() -> None:
    value = os.environ.get("MAX_JOBS", "")
    if value and not (value.isdecimal() and int(value) > 0):
        fail(f"MAX_JOBS is {value!r}, expected a positive number")


def find_target_packages() -> None:
    """Make the target environment's torch and torchvision importable, also under pip's build isolation.

    An isolated build runs the target environment's interpreter with that environment's packages hidden. They are
    appended to the path, so that the build's own setuptools still comes first.
    """
    if importlib.util.find_spec("torch") is None:
        places = [*site.getsitepackages(), *(sysconfig.get_path(key) for key in ("purelib", "platlib"))]
        config = Path(sys.prefix, "pyvenv.cfg")
        if not config.is_file() or re.search(
            r"(?mi)^include-system-site-packages\s*=\s*true", config.read_text(encoding="utf-8")
        ):
            places.append(site.getusersitepackages())
        for place in dict.fromkeys(places):
            site.addsitedir(place)
        importlib.invalidate_caches()


def check_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        fail(
            f"PyTorch is not installed in {sys.prefix}, and the kernels of detrx are compiled against it.\n"
            "Install it first (`pip install torch torchvision`), then detrx again.\n"
            "Without compiled kernels: DETRX_BUILD_EXT=0 pip install ..."
        )


def toolkit_of(nvcc: str) -> Path | None:
    """The toolkit folder behind an `nvcc`, which may be a wrapper script or a link."""
    try:
        dryrun = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, encoding="utf-8"
        )
    except OSError:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", dryrun.stdout + dryrun.stderr, re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parent.parent


def find_cuda_home() -> Path | None:
    """The CUDA toolkit: $CUDA_HOME, $CUDA_PATH, that of the nvcc on PATH, or /usr/local/cuda."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            home = Path(os.environ[name])
            if not (home / "bin" / "nvcc").is_file():
                fail(f"{name} is {str(home)!r}, but {home / 'bin' / 'nvcc'} does not exist")
            return home
    nvcc = shutil.which("nvcc")
    homes = [toolkit_of(nvcc) if nvcc else None, Path("/usr/local/cuda")]
    return next((home for home in homes if home and (home / "bin" / "nvcc").is_file()), None)


def plan_cuda() -> tuple[Path | None, str]:
    """The toolkit to build the CUDA kernels with, or None and the reason why not."""
    import torch

    asked = switch("DETRX_BUILD_CUDA")
    if asked is False:
        return None, "DETRX_BUILD_CUDA=0"
    built_with = torch.version.cuda
    if built_with is None:
        reason = f"torch {torch.__version__} is built without CUDA"
    elif not asked and not torch.cuda.is_available():
        reason = "torch sees no GPU; set DETRX_BUILD_CUDA=1 to build them anyway"
    else:
        home = find_cuda_home()
        if home is None:
            reason = (
                f"no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda; torch {torch.__version__} needs {built_with}"
            )
        else:
            output = subprocess.run(
                [home / "bin" / "nvcc", "--version"], capture_output=True, text=True, encoding="utf-8"
            ).stdout
            release = re.search(r"release (\d+)\.(\d+)", output)
            found = f"{release[1]}.{release[2]}" if release else "unknown"
            if release and release[1] == built_with.split(".")[0]:
                if found != built_with:
                    say(f"warning: nvcc of {home} is CUDA {found}, torch was built with CUDA {built_with}")
                return home, ""
            reason = f"nvcc of {home} is CUDA {found}, torch was built with CUDA {built_with}: install that toolkit"
    if asked:
        fail(f"DETRX_BUILD_CUDA=1, but {reason}")
    return None, reason


def check_compiler() -> None:
    """Both compilers that the build uses: torch's choice for compiling, Python's for linking."""
    for command in (os.environ.get("CXX", "c++"), sysconfig.get_config_var("LDCXXSHARED") or "c++"):
        program = shlex.split(os.environ.get("CXX") or command)[0]
        if shutil.which(program) is None:
            fail(
                f"the C++ compiler {program!r} is not installed (Debian, Ubuntu: apt install g++; or set CXX).\n"
                "Without compiled kernels: DETRX_BUILD_EXT=0 pip install ..."
            )


class BuildPy(build_py):
    """An installed package carries configs and projects with it; an editable one finds those of the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in ("configs", "projects"):
            if (ROOT / name).is_dir():
                target = Path(self.build_lib, "detrx", "config_zoo", name)
                shutil.copytree(ROOT / name, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def extension() -> dict:
    """The arguments of `setup` that build `detrx._C`: its module and command."""
    check_max_jobs()
    check_compiler()
    home, reason = plan_cuda()
    if home:
        os.environ["CUDA_HOME"] = str(home)  # torch would take the folder above a wrapper script

    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    openmp = ["-fopenmp"] if platform.system() == "Linux" else []
    # Without errno and floating-point traps, the compiler vectorises float to int conversions and comparisons.
    flags = {
        "cxx": ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *openmp]
    }
    kind = "cpu"
    if home:
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHS)
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "of the GPUs in sight")
        flags["cxx"].append(f'-DDETRX_CUDA_ARCHS="{archs}"'.replace(";", ","))
        flags["nvcc"] = ["-O3"]
        kind = f"cu{torch.version.cuda}"
    summary = f"CPU kernels and CUDA kernels ({archs}, {home})" if home else f"CPU kernels; no CUDA kernels: {reason}"
    folder = f"{platform.machine()}-{sys.implementation.cache_tag}-torch{torch.__version__}-{kind}"

    def sources(pattern: str) -> list[str]:
        return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(pattern))

    class BuildExt(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # Editable builds get a temporary folder from setuptools: nothing would be left to build upon.
            self.build_temp = str(ROOT / "build" / folder)
            # ninja decides what to compile, by command and dependencies; setuptools would look at the sources only.
            self.force = True

        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                fail(
                    f"compiling detrx._C failed ({error}); the compiler's messages are above.\n"
                    f"It was to have {summary}.\nWithout compiled kernels: DETRX_BUILD_EXT=0 pip install ..."
                )
            say(f"built detrx._C for torch {torch.__version__}: {summary}")

    module = (CUDAExtension if home else CppExtension)(
        "detrx._C",
        sources=sources("*.cpp") + (sources("*.cu") if home else []),
        depends=sources("*.h") + sources("*.inl") + sources("*.cuh"),
        extra_compile_args=flags,
    )
    return {"ext_modules": [module], "cmdclass": {"build_py": BuildPy, "build_ext": BuildExt}}


def remove_stale_extension() -> None:
    """An editable install without kernels must not find those of an earlier one."""
    for path in (ROOT / "detrx").glob("_C.*"):
        path.unlink()
        say(f"removed {path}")


def build_arguments() -> dict:
    if switch("DETRX_BUILD_EXT") is False:
        if {"editable_wheel", "develop"} & set(sys.argv):
            remove_stale_extension()
        say("DETRX_BUILD_EXT=0: no compiled kernels; the operators will run as PyTorch code")
        return {"cmdclass": {"build_py": BuildPy}}
    check_torch()
    return {} if METADATA_COMMANDS & set(sys.argv[1:2]) else extension()


def version() -> str:
    return re.search(r'__version__ = "(.+)"', (ROOT / "detrx" / "__init__.py").read_text(encoding="utf-8"))[1]


find_target_packages()
# timm, which has the backbones, requires torchvision, and there is no torchvision for some builds of torch: where it is
# missing, requiring timm would replace the user's torch.
VISION = ["torchvision>=0.21", "timm>=1.0"]

setup(
    name="detrx",
    version=version(),
    description="The DETR family on Detectron2, with its own C++/CUDA kernels",
    license="Apache-2.0",
    packages=find_packages(include=["detrx", "detrx.*"]),
    package_data={"detrx.analysis.report": ["templates/*"]},
    python_requires=">=3.10",
    install_requires=[
        # 2.6: the first to load checkpoints without running what is in them, unless told otherwise.
        "torch>=2.6",
        "numpy>=1.24",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1,<1.4",
        "pycocotools>=2.0.6",
        "scipy>=1.10",
        "pillow>=10.1",
        "pyyaml>=6.0",
        "tqdm>=4.60",
        "jinja2>=3.0",
        "tabulate>=0.9",
        "termcolor>=2.0",
        "safetensors>=0.4",
        "scikit-learn>=1.2",
        "matplotlib>=3.6",
        "plotly>=5.24",
        "tensorboard>=2.11",
        *(VISION if importlib.util.find_spec("torchvision") else []),
    ],
    extras_require={
        "vision": VISION,
        "lvis": ["lvis>=0.5.3"],
        "fast-eval": ["faster-coco-eval>=1.6"],
        "video": ["av>=15.0"],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"],
        "dev": [
            "pytest>=7.4",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=2.4",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
            "ninja>=1.11",
            "transformers>=5.0",
        ],
    },
    **build_arguments(),
)
