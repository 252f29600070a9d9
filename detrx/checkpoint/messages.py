"""Parts of error messages."""

from collections.abc import Mapping, Sequence

__all__ = ["differences", "first_line"]

_SHOWN = 5


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
