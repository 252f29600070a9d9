"""Overrides: what Hydra's grammar reads, what it cannot read, and what replaces what."""

import copy
import shlex

import pytest
import yaml
from omegaconf import OmegaConf

from detrx import config_zoo
from detrx.config_zoo import apply_overrides, catalog
from detrx.d2.config import LazyCall, LazyConfig
from detrx.engine import ConfigError, load_config
from detrx.errors import InvalidInputError


def config():
    content = {
        "text": "x",
        "nothing": None,
        "number": 0.5,
        "flag": False,
        "list": [1, 2],
        "dict": {"a": 1, "inner": {"b": 2}},
        "call": LazyCall(copy.copy)(x={"y": 1}),
        "reference": "${dict}",
        "dataset": {"train_json": "", "name": "custom"},
        "train": {"output_dir": "", "init_checkpoint": "", "seed": 3},
    }
    return OmegaConf.create(content, flags={"allow_objects": True})


def overridden(*overrides):
    return apply_overrides(config(), overrides)


TYPED = [
    "/data/größe (neu)/train.json",
    "it's",
    'a "quoted" word',
    "a=b",
    "a, b",
    "x${y",
    "$HOME/~user",
    "~/x",
    "a (b) [c] {d}",
    "日本/🙂.json",
    "a#b;c&d!e<f>g^h`i",
    "C:\\Users\\x (y)",
    "two\nlines, (x)",
]


@pytest.mark.parametrize("key", ["text", "nothing", "dataset.train_json", "train.output_dir", "+new.key"])
@pytest.mark.parametrize("typed", TYPED)
def test_text_is_taken_as_it_is_typed(key, typed, tmp_path):
    (argument,) = shlex.split(shlex.quote(f"{key}={typed}"))  # as a shell would pass it
    cfg = overridden(argument)
    assert OmegaConf.select(cfg, key.lstrip("+")) == typed
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(cfg, path)
    assert OmegaConf.select(LazyConfig.load(path), key.lstrip("+")) == typed


@pytest.mark.parametrize(
    "typed", ["2024", "1e5", "true", "[old]", "{a}", "1_000", "\\\\server\\share", " a ", "a\\,b", "x,y"]
)
@pytest.mark.parametrize("key", ["dataset.train_json", "dataset.name", "train.output_dir", "train.init_checkpoint"])
def test_paths_are_text_whatever_they_look_like(key, typed):
    assert OmegaConf.select(overridden(f"{key}={typed}"), key) == typed


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("true", True),
        ("null", None),
        ("[a,2]", ["a", 2]),
        ("[größe, 'a (b), c']", ["größe", "a (b), c"]),
        ("{a: 1, größe: [x]}", {"a": 1, "größe": ["x"]}),
        ("'größe, (y)'", "größe, (y)"),
        ('"it\'s"', "it's"),
        ("${train.seed}", 3),
        ("größe/${train.seed}", "größe/3"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("key", ["text", "nothing"])
def test_what_the_grammar_reads_keeps_its_meaning(key, typed, value):
    assert OmegaConf.select(overridden(f"{key}={typed}"), key) == value


def test_paths_can_be_quoted_null_and_refer_to_other_keys():
    cfg = overridden("train.output_dir='a b'", "train.init_checkpoint=null", "dataset.train_json=größe/${train.seed}")
    assert (cfg.train.output_dir, cfg.train.init_checkpoint, cfg.dataset.train_json) == ("a b", None, "größe/3")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("number=1,2", r"override 'number=1,2': expected a number, and '1,2' cannot be read as one$"),
        ("flag=a(", "expected true or false"),
        ("list=[a,b", "expected a list, .*; put quotes around text"),
        ("list.0=a)", "expected a number"),
        ("dict={a (b)}", "expected a dict"),
        ("text=[a,b", "expected a list or a dict"),
        ("text=${number.there}", r"override 'text=\$\{number\.there\}': .*\(\\\$\{ is a literal \$\{\)$"),
        ("text.x=1", "text is 'x', which has no keys"),
        ("list.7=1", "override 'list.7=1' cannot be applied: "),
        ("text", "is not of the form key=value"),
        ("größe=1", "is not of the form key=value"),
        ("~text", "keys cannot be removed"),
        ("~text=1", "keys cannot be removed"),
        ({"text": 1}, "is not of the form key=value"),
    ],
)
def test_what_cannot_be_read_is_one_line(override, message):
    with pytest.raises(InvalidInputError, match=message) as error:
        overridden(override)
    assert "\n" not in str(error.value)


def test_dicts_are_merged_and_calls_are_replaced():
    cfg = overridden("dict={inner: {c: 3}}", "call={x: {z: 2}}")
    assert cfg.dict == {"a": 1, "inner": {"b": 2, "c": 3}} and cfg.call.x == {"y": 1, "z": 2}
    for target in ("builtins.dict", "copy.copy"):  # a call that is given anew is that call, whatever was there
        cfg = overridden(f"call={{_target_: {target}, z: 2}}")
        assert cfg.call == {"_target_": target, "z": 2}
    assert overridden("dict={inner: {_target_: copy.copy}}").dict == {"a": 1, "inner": {"_target_": "copy.copy"}}
    assert set(overridden("call._target_=builtins.dict").call) == {"_target_", "x"}
    cfg = overridden("reference={a: 5}")
    assert cfg.reference == {"a": 5} and cfg.dict.a == 1  # not through the reference


@pytest.mark.parametrize(
    "override",
    [
        *("number=1e-3", "flag=true", "nothing=[1,{a: b}]", "list=[3]", "list.0=7", "dict={a: 5, inner: {c: 1}}"),
        *("dict=null", "reference={a: 5}", "text=${train.seed}", "new.key=x", "call._target_=builtins.dict"),
        *("text=a b", "call={x: {z: 2}}", "text='x, y'", "++more={a: {b: 1}}", "text=", "dict.inner.b=[a, 'b c']"),
    ],
)
def test_what_both_can_read_is_as_with_the_provider(override):
    cfg = config()
    assert overridden(override) == LazyConfig.apply_overrides(cfg, [override])


def test_variants_are_overridden_the_same_way(tmp_path, monkeypatch):
    """The line of a `variants.yaml` is read like a command line."""
    entry = catalog.find("dino/dino_swin_l_36ep")
    lines = ["dataloader.train.mapper.augmentations={_target_: builtins.list}", "train.output_dir=/größe (neu)/2024"]
    changed = catalog.Entry(entry.path, entry.base, {"queries": 5, "overrides": lines})
    monkeypatch.setattr(config_zoo, "find", lambda name: changed)
    cfg = config_zoo.get_config("any")
    assert cfg.dataloader.train.mapper.augmentations == {"_target_": "builtins.list"}
    assert cfg.train.output_dir == "/größe (neu)/2024"


BASE = "deformable_detr/deformable_detr_digits"


def test_a_call_on_the_command_line(tmp_path):
    key = "dataloader.train.mapper.augmentations"
    cfg = load_config(BASE, [f"{key}={{_target_: detrx.data.DetectionMapper, augmentations: []}}"])
    assert OmegaConf.select(cfg, key) == {"_target_": "detrx.data.DetectionMapper", "augmentations": []}
    for override, message in (
        (f"{key}={{_target_: detrx.nothing}}", r"_target_ detrx\.nothing cannot be imported"),
        (f"{key}={{_target_: detrx.data.DetectionMapper, augs: 1}}", r"has no argument 'augs'; it has "),
        ("optimizer={lrr: 1}", r"unknown config key 'optimizer\.lrr'; did you mean optimizer\.lr\?"),
        ("train={ema: {decya: 1}}", r"unknown config key 'train\.ema\.decya'; did you mean train\.ema\.decay"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(BASE, [override])


def test_a_config_written_by_a_training_has_what_was_typed(tmp_path):
    folder = tmp_path / "größe (neu), it's"
    cfg = load_config(BASE, [f"train.output_dir={folder}", "+train.note=a (b), ${"])
    path = tmp_path / "config.yaml"
    LazyConfig.save(cfg, str(path))
    again = load_config(str(path), [])
    assert again.train.output_dir == str(folder) and again.train.note == "a (b), ${"
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["train"]["output_dir"] == str(folder)
