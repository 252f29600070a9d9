"""Configs as plain Python files whose objects are described, not built: `LazyCall` describes, `instantiate` builds."""

from __future__ import annotations

import builtins
import contextlib
import copy
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import yaml
from hydra.utils import _locate
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

from detrx.d2.embedded.file_io import PathManager
from detrx.errors import InvalidInputError, MissingImportError, UnknownNameError

logger = logging.getLogger(__name__)

_FLAGS = {"allow_objects": True}


class LazyCall:
    """``LazyCall(f)(a=1)`` is a ``DictConfig`` that says "call ``f`` with ``a=1``"; `instantiate` makes the call."""

    def __init__(self, target: Callable | str | Mapping):
        if not (callable(target) or isinstance(target, (str, Mapping))):
            raise TypeError(f"LazyCall needs a callable, its dotted name or a config of one, got {target!r}")
        self._target = target

    def __call__(self, **kwargs) -> DictConfig:
        # omegaconf turns a dataclass into a structured config instead of holding it as a value
        target = name_of(self._target) if dataclasses.is_dataclass(self._target) else self._target
        call = {**kwargs, "_target_": target}
        return DictConfig(call, flags=_FLAGS)


def instantiate(cfg: Any) -> Any:
    """Make the call that ``cfg`` describes, its arguments first.

    Lists are instantiated element by element, structured configs become their dataclass; anything else, a dict
    without ``_target_`` included, is returned as it is.
    """
    if isinstance(cfg, ListConfig):
        return ListConfig([instantiate(item) for item in cfg], flags=_FLAGS)
    if isinstance(cfg, list):
        return [instantiate(item) for item in cfg]
    if isinstance(cfg, DictConfig) and dataclasses.is_dataclass(cfg._metadata.object_type):
        return OmegaConf.to_object(cfg)
    if not (isinstance(cfg, Mapping) and "_target_" in cfg):
        return cfg

    kwargs = {key: instantiate(value) for key, value in cfg.items()}
    target = kwargs.pop("_target_")
    function = _locate(target) if isinstance(target, str) else target
    if not callable(function):
        raise AssertionError(f"_target_ {target!r} is not callable")
    try:
        return function(**kwargs)
    except TypeError:
        logger.error("Error when instantiating %s", target)
        raise


def name_of(obj: Any) -> str:
    """The shortest dotted name that leads to ``obj``: ``torch.nn.Linear``, not by its defining module."""
    parts = obj.__module__.split(".")
    for end in range(1, len(parts)):
        name = ".".join([*parts[:end], obj.__qualname__])
        try:
            if _locate(name) is obj:
                return name
        except ImportError:
            continue
    return f"{obj.__module__}.{obj.__qualname__}"


class LazyConfig:
    """Load, override and save configs."""

    @staticmethod
    def load(filename: str, keys: str | Iterable[str] | None = None) -> Any:
        """Load a ``.py`` or ``.yaml`` config file; either can run code, so load only files that you trust.

        A Python config may import from other config files with relative imports, whether or not their folders are
        packages; each such import runs the file anew, so that no two configs share state.

        Args:
            keys: name or names to return. Default: a ``DictConfig`` with every config object of the file.
        """
        content: Any
        suffix = os.path.splitext(filename)[1]
        if suffix == ".py":
            content = _run(filename)
        elif suffix in (".yaml", ".yml"):
            with open(PathManager.get_local_path(filename), encoding="utf-8") as f:
                content = OmegaConf.create(yaml.unsafe_load(f), flags=_FLAGS)
        else:
            raise InvalidInputError(f"Config file {filename} is neither a .py nor a .yaml file")

        if isinstance(keys, str):
            return _as_config(content[keys])
        if keys is not None:
            return tuple(_as_config(content[key]) for key in keys)
        if suffix != ".py":
            return content
        public = {name: value for name, value in content.items() if not name.startswith("_")}
        configs = {k: _as_config(v) for k, v in public.items() if isinstance(v, (DictConfig, ListConfig, dict))}
        return DictConfig(configs, flags=_FLAGS)

    @staticmethod
    def load_rel(filename: str, keys: str | Iterable[str] | None = None) -> Any:
        """`load` with ``filename`` relative to the file that calls this."""
        caller = sys._getframe(1).f_code.co_filename
        return LazyConfig.load(os.path.join(os.path.dirname(caller), filename), keys)

    @staticmethod
    def save(cfg: Any, filename: str) -> None:
        """Write ``cfg`` as YAML, callables by their dotted names and interpolations unresolved.

        What YAML cannot hold is logged: the file can then only be read by people, or is not written at all.
        """
        try:
            cfg = copy.deepcopy(cfg)
        except Exception:  # some arguments cannot be copied; their config is written as it is
            pass
        else:
            for node in _dict_configs(cfg):
                with contextlib.suppress(AttributeError):  # what has no name, or comes from a config file, stays
                    if callable(node.get("_target_")):
                        node._target_ = name_of(node._target_)
        try:
            container = OmegaConf.to_container(cfg, resolve=False, structured_config_mode=SCMode.INSTANTIATE)
            text = yaml.dump(container, default_flow_style=None, allow_unicode=True, width=9999)
        except Exception:
            logger.exception("The config cannot be written as YAML; %s is not saved:", filename)
            return
        with PathManager.open(filename, "w", encoding="utf-8") as f:
            f.write(text)
        try:
            yaml.unsafe_load(text)
        except Exception:
            logger.warning("%s is readable but cannot be loaded: the config holds objects that YAML cannot", filename)

    @staticmethod
    def apply_overrides(cfg: DictConfig, overrides: list[str]) -> DictConfig:
        """Apply ``key=value`` strings (Hydra's grammar) to ``cfg`` in place; new keys are added. Returns ``cfg``."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        for override in OverridesParser.create().parse_overrides(overrides):
            if override.is_delete():
                raise NotImplementedError(f"Override {override.input_line!r}: deletion is not supported")
            key = override.key_or_group
            parts = key.split(".")
            for end in range(1, len(parts)):
                prefix = ".".join(parts[:end])
                value = OmegaConf.select(cfg, prefix, default=None)
                if value is None:
                    break
                if not OmegaConf.is_config(value):
                    raise UnknownNameError(
                        f"Override {override.input_line!r}: {prefix} is a {type(value).__name__}, not a config"
                    )
            OmegaConf.update(cfg, key, override.value(), merge=True)
        return cfg


def _as_config(value: Any) -> Any:
    return DictConfig(value, flags=_FLAGS) if isinstance(value, dict) else value


def _dict_configs(cfg: Any) -> Iterator[DictConfig]:
    """``cfg`` and all configs inside it that are dicts."""
    if isinstance(cfg, DictConfig):
        yield cfg
        for value in cfg.values():
            yield from _dict_configs(value)
    elif isinstance(cfg, ListConfig):
        for value in cfg:
            yield from _dict_configs(value)


def _run(filename: str) -> dict[str, Any]:
    """Execute a config file and return its names.

    The file gets its own ``__import__``, which reads relative imports as paths of config files. Python looks that
    function up in the ``__builtins__`` of the importing code, so nothing outside the file is affected.
    """

    def import_(name: str, globals=None, locals=None, fromlist=(), level: int = 0) -> Any:
        if level == 0:
            return builtins.__import__(name, globals, locals, fromlist, level)
        path = _imported_file(filename, name, level)
        content = _run(path)
        for wanted in fromlist:
            if wanted not in content:
                raise MissingImportError(f"Config file {filename} imports {wanted!r}, which {path} does not define")
            content[wanted] = _as_config(content[wanted])
        return SimpleNamespace(**content)

    with open(PathManager.get_local_path(filename), encoding="utf-8") as f:
        source = f.read()
    try:
        code = compile(source, filename, "exec")
    except SyntaxError as error:
        raise SyntaxError(f"Config file {filename} has a syntax error in line {error.lineno}: {error.msg}") from error
    namespace = {"__file__": filename, "__builtins__": {**vars(builtins), "__import__": import_}}
    exec(code, namespace)
    return namespace


def _imported_file(importer: str, name: str, level: int) -> str:
    """Path of the config file that ``from <level dots><name> import ...`` in the file ``importer`` means."""
    folder = importer if "://" in importer else os.path.abspath(importer)
    for _ in range(level):
        folder = os.path.dirname(folder)
    path = os.path.join(folder, *name.split(".")) + ".py"
    if not name or (PathManager.isdir(path[: -len(".py")]) and not PathManager.isfile(path)):
        where = path[: -len(".py")] if name else folder
        raise MissingImportError(
            f"Config file {importer} imports from the folder {where}; it can only import from files"
        )
    if not PathManager.isfile(path):
        raise MissingImportError(f"Config file {importer} imports from {path}, which does not exist")
    return path
