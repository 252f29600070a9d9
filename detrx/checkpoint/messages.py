"""The error of checkpoints, and parts of its messages."""

from collections.abc import Mapping, Sequence

from detrx.errors import UserError

__all__ = ["CheckpointError", "differences"]

_SHOWN = 5


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, damaged, or made for something else. The message names the file."""


def differences(names: Mapping[str, Sequence[str]]) -> str:
    """How two sets of tensors differ, such as "2 missing (a, b); 1 unexpected (c)"; only the first names are listed.

    Args:
        names: of tensors, by what is wrong with them.
    """
    return "; ".join(
        f"{len(those)} {kind} ({', '.join(those[:_SHOWN])}{', ...' if len(those) > _SHOWN else ''})"
        for kind, those in names.items()
        if those
    )
