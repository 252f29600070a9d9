"""Loading a config and applying overrides, with errors for overrides that would have no effect."""

import contextlib
import difflib
import inspect
import os
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from detrx.config_zoo import apply_overrides, read_config
from detrx.config_zoo.overrides import escaped, parse_override
from detrx.d2.utils import comm
from detrx.data.datasets.custom import without_files
from detrx.engine.dataset_config import DATASET_DEFAULTS, check_dataset, use_dataset
from detrx.engine.renamed import RENAMED_TARGETS, rename_targets
from detrx.engine.settings import saved_config
from detrx.errors import InvalidInputError, first_line

__all__ = [
    "ConfigError",
    "check_evaluation",
    "check_overrides",
    "load_config",
    "override_config",
    "resolve_seed",
    "without_pretrained",
]

# Defaults for configs written for Detectron2's script. configs/common/train.py explains the keys.
_TRAIN_DEFAULTS = {
    "seed": -1,
    "amp": {"enabled": False, "dtype": "float16", "evaluate": False},
    "ddp": {},
    "clip_grad": {"enabled": False, "max_norm": 1.0, "norm_type": 2.0},
    "accumulate": 1,
    "fewer_queries": False,
    "ema": {"enabled": False, "decay": 0.9997, "warmup": 0, "evaluate": True},
    "best_metric": "",
    "deterministic": False,
    "cudnn_benchmark": False,
}


class ConfigError(InvalidInputError):
    """A config file or an override cannot be used."""


def load_config(path: str, overrides: list[str]) -> DictConfig:
    """Load the config of a training, and apply ``key=value`` overrides with :func:`override_config`.

    Names that have changed since the file was written are replaced (:mod:`detrx.engine.renamed`).

    Args:
        path: a file, or a config's name in `detrx.model_zoo`.

    Raises:
        ConfigError: the config does not exist or cannot be read, or :func:`override_config` raises the error.
    """
    return override_config(_load(path), overrides, f"config file {path}")


def _load(path: str) -> DictConfig:
    if not path:
        raise ConfigError("no config file: give --config-file FILE")
    try:
        cfg = read_config(path)
    except FileNotFoundError as error:
        raise ConfigError(f"config file {error.filename} does not exist" if error.filename else str(error)) from error
    except SyntaxError as error:
        raise ConfigError(f"config file {path} cannot be read: {first_line(error)}") from error
    except UnicodeDecodeError as error:
        hint = "" if error.encoding == "utf-8" else "; PYTHONUTF8=1 makes Python read UTF-8 in any locale"
        raise ConfigError(f"config file {path} cannot be read as {error.encoding}: {error.reason}{hint}") from error
    rename_targets(cfg)
    return cfg


def override_config(cfg: DictConfig, overrides: list[str], source: str = "config") -> DictConfig:
    """Fill in defaults of the config of a training, and apply ``key=value`` overrides, in place.

    ``dataset.train_json``, ``train_images``, ``val_json``, ``val_images`` and ``name`` replace the datasets of the
    config by the user's own COCO files: these are registered as ``<name>_train`` and ``<name>_val``, and loaders,
    evaluator and number of classes are set accordingly, before the other overrides are applied.

    Args:
        source: what the config is called in errors.

    Raises:
        ConfigError: it is not the config of a training, :func:`check_overrides` rejects an override, or the files of
            ``dataset`` cannot be used.
    """
    missing = [key for key in ("model", "dataloader", "optimizer", "lr_multiplier", "train") if key not in cfg]
    if missing:
        raise ConfigError(f"{source} has no {', '.join(missing)}")
    cfg.train = OmegaConf.merge(_TRAIN_DEFAULTS, cfg.train)
    if not isinstance(cfg.get("dataset", {}), (DictConfig, dict)):
        raise ConfigError(f"{source}: dataset={cfg.dataset} is not a dict of {', '.join(DATASET_DEFAULTS)}")
    cfg.dataset = OmegaConf.merge(DATASET_DEFAULTS, cfg.get("dataset", {}))
    check_overrides(cfg, overrides)
    of_dataset = [text for text in overrides if text.lstrip("+").startswith(("dataset.", "dataset="))]
    before = dict(cfg.dataset)
    with _as_config_error():
        apply_overrides(cfg, of_dataset)
        use_dataset(cfg, changed={key for key, value in cfg.dataset.items() if before.get(key) != value})
        apply_overrides(cfg, [text for text in overrides if text not in of_dataset])
        check_dataset(cfg)
    rename_targets(cfg)
    for key in ("output_dir", "init_checkpoint"):
        if cfg.train.get(key) is not None:
            cfg.train[key] = escaped(os.path.expanduser(str(cfg.train[key])))
    return cfg


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error


def check_overrides(cfg: DictConfig, overrides: list[str]) -> None:
    """Check that the key of every override is known, and what its value calls.

    A key is known if the config has it, or if it is a parameter of the call that the config describes at this place.
    Any other key can be added with ``+key=value``.

    Raises:
        ConfigError: an override is malformed or its key is unknown, in which case the message suggests similar keys; or
            a ``_target_`` in its value does not exist or has no such argument.
    """
    for text in overrides:
        if str(text).startswith("--"):
            raise ConfigError(f"{text} must come before the first key=value")
        with _as_config_error():
            override = parse_override(text, cfg)
        if not override.adds:
            _check_key(cfg, override.key)
            _check_keys_in(override.value, OmegaConf.select(cfg, override.key, default=None), cfg, override.key)
        _check_calls(override.value, text)


def _check_key(cfg: DictConfig, key: str) -> None:
    if _is_known(cfg, key):
        return
    similar = _similar(key, _all_keys(cfg))
    hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
    raise ConfigError(f"unknown config key {key!r}{hint} (+{key}=... adds a key)")


def _check_keys_in(value: Any, present: Any, cfg: DictConfig, key: str) -> None:
    """Check the keys of a dict that is merged into a call, or into a part of the config that has fixed keys."""
    if not isinstance(value, dict) or "_target_" in value or not isinstance(present, DictConfig):
        return
    fixed = "_target_" in present or "." not in key or key.startswith("train.")
    for name, each in value.items():
        if fixed:
            _check_key(cfg, f"{key}.{name}")
        _check_keys_in(each, present.get(name), cfg, f"{key}.{name}")


def _check_calls(value: Any, text: str) -> None:
    """Check that what a value of an override calls exists and has the arguments that are given."""
    if isinstance(value, list):
        for each in value:
            _check_calls(each, text)
    elif isinstance(value, dict):
        if "_target_" in value:
            target = RENAMED_TARGETS.get(value["_target_"], value["_target_"])
            try:
                known = call_parameters(OmegaConf.create({"_target_": target}))
            except Exception as error:  # whatever the import of a module of the user raises
                reason = f"_target_ {target} cannot be imported: {first_line(error)}"
                raise ConfigError(f"override {text!r}: {reason}") from error
            if "**" not in known and (unknown := [key for key in value if key not in (*known, "_target_")]):
                raise ConfigError(
                    f"override {text!r}: {target} has no argument {unknown[0]!r}; it has {', '.join(known)}"
                )
        for each in value.values():
            _check_calls(each, text)


def _is_known(cfg: DictConfig, key: str) -> bool:
    *path, last = key.split(".")
    node: Any = cfg
    for part in path:
        if not _has(node, part):
            return False
        node = node[int(part)] if isinstance(node, ListConfig) else node[part]
    return _has(node, last) or last in call_parameters(node) or "**" in call_parameters(node)


def _has(node: Any, part: str) -> bool:
    if isinstance(node, ListConfig):
        return part.isdigit() and int(part) < len(node)
    return isinstance(node, DictConfig) and part in list(node.keys())


def call_parameters(node: Any) -> list[str]:
    """Names of the keyword parameters of the call that ``node`` describes; includes "**" if it takes any keyword."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return []
    target = node["_target_"]
    if isinstance(target, str):
        from hydra.utils import get_object

        target = get_object(target)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C
        return ["**"]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [parameter.name for parameter in parameters if parameter.kind in named]
    return names + ["**"] * any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _similar(key: str, known: list[str]) -> list[str]:
    """Keys with the same name at another place, a similar name at the same place, or a similar path."""
    place, _, name = key.rpartition(".")
    moved = [other for other in known if other.rpartition(".")[2] == name]
    beside = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == place}
    similar = difflib.get_close_matches(key, moved, n=2, cutoff=0)
    similar += [beside[other] for other in difflib.get_close_matches(name, beside, n=2)]
    similar += difflib.get_close_matches(key, known, n=2, cutoff=0.85)
    return list(dict.fromkeys(similar))


def _all_keys(node: Any, prefix: str = "") -> list[str]:
    """Dotted names of everything that an override can change."""
    if isinstance(node, DictConfig):
        items = [
            (str(key), None if OmegaConf.is_missing(node, key) else node[key]) for key in node if key != "_target_"
        ]
        items += [(name, None) for name in call_parameters(node) if name != "**" and name not in node]
    elif isinstance(node, ListConfig):
        items = [(str(i), item) for i, item in enumerate(node)]
    else:
        return []
    return [name for key, value in items for name in [prefix + key, *_all_keys(value, f"{prefix}{key}.")]]


def check_evaluation(cfg: DictConfig) -> None:
    """Check, before a training, that it has a dataset for its evaluations.

    Raises:
        ConfigError: there is none, because ``dataset`` has only training files.
    """
    test = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if cfg.train.get("eval_period", 0) > 0 and isinstance(test, str) and without_files(test):
        raise ConfigError(
            f"train.eval_period={cfg.train.eval_period} evaluates, but there is no dataset.val_json: give "
            "dataset.val_json=FILE dataset.val_images=FOLDER, or train.eval_period=0 to train without evaluation"
        )


def resolve_seed(cfg: DictConfig, resume: bool) -> None:
    """Replace a negative ``train.seed`` by that of the run to resume, or by a new one. All processes must call it."""
    if cfg.train.seed >= 0:
        return
    seed = int.from_bytes(os.urandom(4), "little") >> 1
    before = saved_config(os.path.join(cfg.train.output_dir, "config.yaml")) if resume else None
    if before is not None and (drawn := OmegaConf.select(before, "train.seed", default=-1)) >= 0:
        seed = drawn
    cfg.train.seed = int(comm.all_gather(seed)[0])


def without_pretrained(model: DictConfig) -> DictConfig:
    """Change the config of a model in place, so that its backbone loads no pretrained weights, and return it."""
    backbone = model.get("backbone")
    for key, value in (("pretrained", False), ("checkpoint_path", None)):
        if backbone is not None and key in backbone:
            backbone[key] = value
    return model
