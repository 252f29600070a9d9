"""What the settings of a run are, one by one, and in which of them two configs differ."""

import logging
import os
from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detrx.d2.config import LazyConfig
from detrx.engine.renamed import rename_targets
from detrx.errors import first_line

__all__ = ["Changes", "changed_settings", "describe_changes", "saved_config"]

logger = logging.getLogger(__name__)

Changes = dict[str, tuple[Any, Any]]
"""Dotted key -> value before and after; `NOT_SET` where there is none."""

NOT_SET = "(not set)"
_LONGEST = 100  # characters of a value in a message


def saved_config(path: str) -> DictConfig | None:
    """The `config.yaml` of a run with today's names; None if there is none, or if it cannot be loaded."""
    if not os.path.isfile(path):
        return None
    try:
        cfg = LazyConfig.load(path)
    except Exception as error:  # objects in it that YAML cannot hold, or that are gone
        logger.warning("%s cannot be loaded: %s", path, first_line(error))
        return None
    rename_targets(cfg)
    return cfg


def changed_settings(before: DictConfig, after: DictConfig) -> Changes:
    """The settings of two configs that differ. What only refers to another key that differs is left out."""
    old, new = dict(_settings(before, resolve=True)), dict(_settings(after, resolve=True))
    written = [dict(_settings(cfg, resolve=False)) for cfg in (before, after)]
    changes = {}
    for key in dict.fromkeys([*old, *new]):
        pair = old.get(key, NOT_SET), new.get(key, NOT_SET)
        if pair[0] != pair[1] and written[0].get(key, NOT_SET) != written[1].get(key, NOT_SET):
            changes[key] = pair
    return changes


def describe_changes(changes: Changes) -> list[str]:
    """One line for each: `optimizer.lr: 0.001 -> 1e-05`."""
    return [f"{key}: {_short(a)} -> {_short(b)}" for key, (a, b) in changes.items()]


def _short(value: Any) -> str:
    text = str(value) if value == NOT_SET else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _settings(cfg: DictConfig, resolve: bool) -> Iterator[tuple[str, Any]]:
    try:
        container = OmegaConf.to_container(cfg, resolve=resolve)
    except OmegaConfBaseException:  # a reference to nothing, which nothing may read
        container = OmegaConf.to_container(cfg, resolve=False)
    yield from _leaves(container, "")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(_called(each) if name == "_target_" else each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(each, (dict, list, tuple)) for each in value):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{key}.{index}")
    else:
        yield key, list(value) if isinstance(value, tuple) else value if _is_plain(value) else repr(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool, list, dict))


def _called(target: Any) -> Any:
    """The same name for a callable, whether a config has the object or one of its names."""
    if isinstance(target, str):
        try:
            target = get_object(target)
        except Exception:  # it cannot be imported here
            return target
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"
