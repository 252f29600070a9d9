"""Overrides `key=value` of a config, as Hydra's grammar reads them, and as they are typed where it cannot.

Values are numbers, true, false, null, lists, dicts, quoted strings, interpolations and text, as with Detectron2.
Hydra's grammar knows ASCII letters and few other characters. What it cannot read is taken as text where the config has
text or nothing. Paths (`TEXT_KEYS` and all of `dataset`) are always taken as they are typed, unless they are quoted or
null.

A dict is merged into the one that is there. A dict with `_target_` replaces it, because the arguments of one call mean
nothing to another.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from detrx.errors import InvalidInputError, first_line

__all__ = ["TEXT_KEYS", "Override", "apply_overrides", "escaped", "parse_override"]

TEXT_KEYS = ("output_dir", "init_checkpoint", "checkpoint", "checkpoint_path", "best_metric")
"""Last parts of keys whose values are text, also where it looks like a number or a list."""

_FORM = re.compile(r"(\+{0,2})([\w$-]+(?:\.[\w$-]+)*)=(.*)", re.ASCII | re.DOTALL)
_DATASET = re.compile(r"dataset\.(name|(train|val)_(json|images))")
_QUOTED = re.compile(r"'.*'|\".*\"", re.DOTALL)
_UNKNOWN = re.compile(r"[^\w \t/\-\\+.$%*@?|:()\[\]{},='\"]", re.ASCII)  # what Hydra's grammar has no name for
_MEANING = {bool: "true or false", int: "a number", float: "a number", ListConfig: "a list", DictConfig: "a dict"}


@dataclass(frozen=True)
class Override:
    """
    Attributes:
        text: as it was typed.
        key: dotted name of what changes.
        value: of plain types.
        adds: the key may be a new one ("+key=value").
    """

    text: str
    key: str
    value: Any
    adds: bool


def parse_override(text: str, cfg: DictConfig) -> Override:
    """Read an override of a config, which is not changed.

    Raises:
        InvalidInputError: it has another form, or its value cannot be read as what the config has at this key.
    """
    if isinstance(text, str) and text.startswith("~"):
        raise InvalidInputError(f"override {text!r}: keys cannot be removed")
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidInputError(f"override {text!r} is not of the form key=value")
    sign, key, typed = match.groups()
    return Override(text, key, _value(text, key, typed, cfg), adds=bool(sign))


def apply_overrides(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """Apply overrides to a config, in place, and return it. Keys that it does not have are added.

    Raises:
        InvalidInputError: as in :func:`parse_override`; or a key leads through something that has no keys, or a value
            refers to a key that does not exist.
    """
    applied = [_apply(cfg, text) for text in overrides]
    for each in applied:
        if isinstance(each.value, str) and "${" in each.value:
            try:
                OmegaConf.select(cfg, each.key)
            except OmegaConfBaseException as error:
                reason = first_line(error)
                raise InvalidInputError(f"override {each.text!r}: {reason} (\\${{ is a literal ${{)") from error
    return cfg


def _apply(cfg: DictConfig, text: str) -> Override:
    override = parse_override(text, cfg)
    path = override.key.split(".")
    for end in range(1, len(path)):
        prefix = ".".join(path[:end])
        node = _present(cfg, prefix)
        if node is None:
            break
        if not OmegaConf.is_config(node):
            raise InvalidInputError(f"override {text!r}: {prefix} is {node!r}, which has no keys")
    try:
        present = _present(cfg, override.key)
        parent = _present(cfg, ".".join(path[:-1])) if path[1:] else cfg
        refers = isinstance(parent, DictConfig) and OmegaConf.is_interpolation(parent, path[-1])
        if not refers and _is_merged(override.value, present):
            _merge(present, override.value)
        else:
            OmegaConf.update(cfg, override.key, override.value, merge=False, force_add=True)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
        raise InvalidInputError(f"override {text!r} cannot be applied: {first_line(error)}") from error
    return override


def _is_merged(value: Any, present: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" not in value and isinstance(present, DictConfig)


def _merge(node: DictConfig, changes: Mapping[str, Any]) -> None:
    with open_dict(node):
        for key, value in changes.items():
            if not _is_merged(value, node.get(key)):
                node[key] = value
                continue
            if OmegaConf.is_interpolation(node, key):  # a dict of its own, or what it refers to would change as well
                node[key] = node[key]
            _merge(node[key], value)


def _present(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key, throw_on_resolution_failure=False, throw_on_missing=False)
    except (OmegaConfBaseException, ValueError, TypeError, IndexError):  # through text or a list's end
        return None


def _value(text: str, key: str, typed: str, cfg: DictConfig) -> Any:
    is_text = key.rpartition(".")[2] in TEXT_KEYS or _DATASET.fullmatch(key) is not None
    if is_text and not _QUOTED.fullmatch(typed):
        return None if typed == "null" else _literal(typed)
    found, value = _read(typed)
    if found:
        return value
    kind = type(_present(cfg, key))
    if kind in _MEANING or (not is_text and typed.startswith(("[", "{"))):
        meaning = _MEANING.get(kind, "a list or a dict")
        hint = "" if meaning == "a number" else "; put quotes around text that has brackets, commas or quotes in it"
        raise InvalidInputError(f"override {text!r}: expected {meaning}, and {typed!r} cannot be read as one{hint}")
    return _literal(typed)


def _read(typed: str) -> tuple[bool, Any]:
    """Whether Hydra's grammar can read a value, and the value."""
    names: dict[str, str] = {}  # of characters that the grammar does not know, by a word that stands for them
    prefix = "Q"
    while prefix in typed:
        prefix += "Q"

    def word(match: re.Match[str]) -> str:
        name = f"{prefix}{ord(match[0]):x}Z"
        names[name] = match[0]
        return name

    try:
        (override,) = OverridesParser.create().parse_overrides([f"key={_UNKNOWN.sub(word, typed)}"])
    except HydraException:
        return False, None
    if override.is_sweep_override():  # 1,2 or range(1,3): what a sweep would try one by one
        return False, None
    return True, _with_characters(override.value(), names)


def _with_characters(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, character in names.items():
            value = value.replace(name, character)
        return str(value)
    if isinstance(value, list):
        return [_with_characters(each, names) for each in value]
    if isinstance(value, dict):
        return {_with_characters(key, names): _with_characters(each, names) for key, each in value.items()}
    return value


def escaped(text: str) -> str:
    """What a config has to hold to give back a text that looks like a reference to another key."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _literal(typed: str) -> str:
    """Text that a config gives back as it is; references to other keys stay such."""
    if "${" in typed:
        try:
            OmegaConf.create({"value": typed})
        except OmegaConfBaseException:
            return escaped(typed)
    return typed
