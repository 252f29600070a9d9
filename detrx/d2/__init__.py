"""Detectron2 where it is installed, and a small core with the same API where it is not.

Each module here (``config``, ``structures``, ``data``, ``engine``, ``evaluation``, ``checkpoint``, ``solver``,
``modeling``, ``utils``) re-exports Detectron2's own objects, or those of the same names from ``detrx.d2.embedded``.
The rest of detrx imports them from here and does not know the difference.

The environment variable ``DETRX_D2`` chooses: ``auto`` (default), ``detectron2`` or ``embedded``. It is read once,
when this package is first imported.
"""

from __future__ import annotations

import importlib
import os
import warnings

from detrx.errors import InvalidInputError, MissingImportError

__all__ = ["USE_DETECTRON2", "provider"]

_CHOICES = ("auto", "detectron2", "embedded")


def _import_problem() -> str | None:
    """Why ``detectron2`` cannot be used, or None when it can."""
    try:
        module = importlib.import_module("detectron2")
    except ModuleNotFoundError as error:
        if error.name == "detectron2":
            return "it is not installed"
        return f"importing it failed: {error}"
    except Exception as error:  # a build for another torch can fail in any way
        return f"importing it failed: {type(error).__name__}: {error}"
    if getattr(module, "__file__", None) is None:  # a directory of that name, for example a clone of the repository
        return f"{next(iter(module.__path__))!r} is a directory without an installed package"
    return None


def _choose(value: str) -> bool:
    """Whether ``DETRX_D2=value`` means Detectron2."""
    if value not in _CHOICES:
        raise InvalidInputError(f"DETRX_D2={value!r} is not one of {', '.join(_CHOICES)}")
    if value == "embedded":
        return False
    problem = _import_problem()
    if problem is None:
        return True
    if value == "detectron2":
        raise MissingImportError(
            f"DETRX_D2=detectron2 asks for Detectron2, but {problem}. DETRX_D2=embedded does without."
        )
    if problem != "it is not installed":
        warnings.warn(f"Detectron2 is not used, the embedded core is: {problem}", stacklevel=3)
    return False


USE_DETECTRON2: bool = _choose(os.environ.get("DETRX_D2", "auto") or "auto")


def provider() -> str:
    """Name of what the modules of this package re-export: ``"detectron2"`` or ``"embedded"``."""
    return "detectron2" if USE_DETECTRON2 else "embedded"
