"""The methods of the folder `projects`, one package per paper, as `detrx.projects.<name>`."""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2] / "projects"
if _CHECKOUT.is_dir():
    __path__.append(str(_CHECKOUT))
