"""The compiled extension `detrx._C`, and the fallbacks that replace it where it is missing.

`DETRX_DISABLE_EXT=1` in the environment hides an extension that was built.
"""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch


def _load() -> str:
    """Import `detrx._C`, which registers its operators. Return "", or why the import failed."""
    if os.environ.get("DETRX_DISABLE_EXT", "0") not in ("", "0"):
        return "hidden by DETRX_DISABLE_EXT"
    try:
        import detrx._C  # noqa: F401
    except ModuleNotFoundError:
        return "detrx._C was not built"
    except ImportError as error:  # built against another torch, or a library that it needs is missing
        return f"detrx._C does not load: {error}"
    return ""


# Why there is no extension; empty if there is one.
LOAD_ERROR: str = _load()
# Keeps the registrations made from Python alive.
_LIBRARY = torch.library.Library("detrx", "FRAGMENT")


def extension_info() -> dict[str, str]:
    """What the extension was built with (`compiler`, `torch`, `cuda` if any), and its instruction set (`cpu_isa`).

    `{"error": reason}` if there is no extension.
    """
    if LOAD_ERROR:
        return {"error": LOAD_ERROR}
    return dict(pair.split("=", 1) for pair in torch.ops.detrx._build_info().split(";"))


def has_kernel(name: str, device_type: str) -> bool:
    """Whether the operator `name` ("ms_deform_attn") has a compiled kernel for "cpu" or "cuda" tensors."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"detrx::{name}", key)


def operators() -> list[str]:
    """Names of the operators of `torch.ops.detrx`, without the namespace."""
    names = {name.removeprefix("detrx::") for name in torch._C._dispatch_get_all_op_names() if "detrx::" in name}
    return sorted(name for name in names if not name.startswith("_"))


def register_fallback(name: str, schema: str, function: Callable) -> None:
    """Make `function` the implementation of `detrx::name` on devices without a compiled kernel.

    `schema` is of the form "(Tensor x) -> Tensor". The extension defines the same schema, unless it is missing or older
    than the operator.
    """
    if not hasattr(torch.ops.detrx, name):
        _LIBRARY.define(name + schema)

    @functools.wraps(function)
    def fallback(*args: Any) -> Any:
        tensor = next(x for x in args if isinstance(x, torch.Tensor))
        _warn_fallback(tensor.device.type)
        return function(*args)

    _LIBRARY.impl(name, fallback, "CompositeExplicitAutograd")


@functools.cache
def _warn_fallback(device_type: str) -> None:
    reason = LOAD_ERROR or f"detrx._C was built without {device_type} kernels, or is older than these sources"
    warnings.warn(
        f"detrx has no compiled kernels for {device_type} tensors ({reason}); using slower PyTorch code. "
        "`python -m detrx.collect_env` says what was built.",
        stacklevel=2,
    )
