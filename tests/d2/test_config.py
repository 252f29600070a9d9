"""Contract of `detrx.d2.config`, whichever provider is active."""

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from detrx.d2 import USE_DETECTRON2
from detrx.d2.config import LazyCall, LazyConfig, instantiate

FILES = {
    "common/train.py": """
        train = dict(max_iter=10, amp=dict(enabled=False))
        steps = [1, 2]
    """,
    "common/models/linear.py": """
        import torch.nn as nn
        from detrx.d2.config import LazyCall as L
        from ..train import train

        train.max_iter = 99  # a config of its own: importers of ..train do not see it
        model = L(nn.Sequential)()
        layer = L(nn.Linear)(in_features=3, out_features="${.in_features}", bias=False)
    """,
    "detector/base.py": """
        from ..common.train import train
        from ..common.models.linear import layer as model
        from detrx.d2.config import LazyConfig

        loaded = LazyConfig.load_rel("../common/train.py").train
        train.output_dir = "./out"
        train["nested"] = {"a": {"b": (1, 2)}}
        lr = 0.1
        _private = dict(a=1)
    """,
    "detector/child.py": """
        from .base import model, train

        model.in_features = 5
        train.update(max_iter=20)
    """,
}


@pytest.fixture
def configs(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path


def write(folder, name, text):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


@dataclass
class Point:
    x: int = 1
    y: int = 2


def weighted_sum(values, weights=(1, 1)):
    return sum(v * w for v, w in zip(values, weights, strict=True))


def test_load_with_relative_imports(configs):
    cfg = LazyConfig.load(str(configs / "detector/child.py"))
    assert set(cfg) == {"model", "train"}
    assert isinstance(cfg, DictConfig) and isinstance(cfg.train.amp, DictConfig)
    assert cfg.train.max_iter == 20 and cfg.train.output_dir == "./out"
    assert cfg.train.nested.a.b == [1, 2]
    linear = instantiate(cfg.model)
    assert isinstance(linear, torch.nn.Linear) and linear.weight.shape == (5, 5) and linear.bias is None


def test_load_keeps_configs_only_and_load_rel_is_relative_to_the_file(configs, monkeypatch):
    monkeypatch.chdir(configs)
    cfg = LazyConfig.load("detector/base.py")
    assert set(cfg) == {"train", "model", "loaded"}  # no plain values, modules, callables, private names
    assert cfg.loaded.max_iter == 10


def test_imports_do_not_share_state(configs):
    first = LazyConfig.load(str(configs / "detector/base.py"))
    first.train.max_iter = 1234
    second = LazyConfig.load(str(configs / "detector/base.py"))
    assert second.train.max_iter == 10


def test_load_keys(configs):
    path = str(configs / "common/train.py")
    train = LazyConfig.load(path, "train")
    assert isinstance(train, DictConfig) and train.max_iter == 10
    train, steps = LazyConfig.load(path, ("train", "steps"))
    assert train.max_iter == 10 and steps == [1, 2]


def test_load_from_relative_path_reaches_parent_folders(configs, monkeypatch):
    monkeypatch.chdir(configs / "common")
    assert LazyConfig.load("../detector/child.py").train.max_iter == 20


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("from .missing import a", "missing.py"),
        ("from ..elsewhere.missing import a", "elsewhere/missing.py"),
        ("from ..common import models", "common"),
    ],
)
def test_import_errors_name_the_file(configs, text, named):
    path = write(configs / "detector", "broken.py", text)
    with pytest.raises(ImportError) as error:
        LazyConfig.load(path)
    assert named in str(error.value)


def test_syntax_error_names_the_file(configs):
    path = write(configs / "detector", "broken.py", "a = (1")
    with pytest.raises(SyntaxError, match=r"broken\.py"):
        LazyConfig.load(path)


@pytest.mark.skipif(USE_DETECTRON2, reason="Detectron2 raises a KeyError without the file's name")
@pytest.mark.parametrize("name", ["nothing", "*"])
def test_importing_a_name_that_is_not_there(configs, name):
    path = write(configs / "detector", "broken.py", f"from .base import {name}")
    with pytest.raises(ImportError) as error:
        LazyConfig.load(path)
    assert repr(name) in str(error.value) and "base.py" in str(error.value)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"train\.txt"):
        LazyConfig.load(str(tmp_path / "train.txt"))
    with pytest.raises(FileNotFoundError, match=r"none\.py"):
        LazyConfig.load(str(tmp_path / "none.py"))


def test_absolute_imports_and_imports_inside_functions_are_unchanged(configs):
    path = write(
        configs / "detector",
        "late.py",
        """
        import os.path as p
        from collections import OrderedDict

        def late():
            import json
            return json.dumps([1])

        cfg = dict(a=p.join("x", "y"), b=late(), c=list(OrderedDict(z=1)))
        """,
    )
    assert LazyConfig.load(path, "cfg") == {"a": "x/y", "b": "[1]", "c": ["z"]}


def collect(**kwargs):
    return kwargs


def make_cfg():
    return OmegaConf.create({"a": {"b": 1, "c": [1, 2]}, "model": {"dim": 4}, "name": "x"})


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("a.b=2", "a.b", 2),
        ("a.b=1e-4", "a.b", 1e-4),
        ("a.b=null", "a.b", None),
        ("a.b=true", "a.b", True),
        ("a.b=cuda:0", "a.b", "cuda:0"),
        ("name='x, y=z'", "name", "x, y=z"),
        ("name=./a-b/c_d", "name", "./a-b/c_d"),
        ("a.c=[3,4,5]", "a.c", [3, 4, 5]),
        ("a.c.0=7", "a.c", [7, 2]),
        ("a={d:{e:1.5}}", "a", {"b": 1, "c": [1, 2], "d": {"e": 1.5}}),
        ("new.key.here=3", "new.key.here", 3),
        ("+model.depth=3", "model", {"dim": 4, "depth": 3}),
        ("a.b=${model.dim}", "a.b", 4),
    ],
)
def test_overrides(override, key, value):
    cfg = make_cfg()
    assert LazyConfig.apply_overrides(cfg, [override]) is cfg
    selected = OmegaConf.select(cfg, key)
    assert selected == value and type(selected) in (type(value), ListConfig, DictConfig)


def test_override_through_a_value_or_with_deletion_is_an_error():
    with pytest.raises(KeyError, match=r"a\.b"):
        LazyConfig.apply_overrides(make_cfg(), ["a.b.c=1"])
    with pytest.raises(NotImplementedError):
        LazyConfig.apply_overrides(make_cfg(), ["~a.b"])


def test_instantiate_recurses_into_calls_and_lists_only():
    inner = LazyCall(weighted_sum)(
        values=[1, 2], weights=[LazyCall("torch.nn.init.calculate_gain")(nonlinearity="linear"), 1]
    )
    assert instantiate(LazyCall(weighted_sum)(values=[inner, 10])) == 13

    made = instantiate(LazyCall(collect)(plain={"inner": inner}, listed=[inner, {"k": 1}], pair=(1, inner)))
    assert isinstance(made["plain"], DictConfig) and "_target_" in made["plain"].inner  # dicts are left alone
    assert isinstance(made["listed"], ListConfig) and made["listed"] == [3, {"k": 1}]
    assert made["pair"] == [1, 3]
    assert instantiate([inner, "a"]) == [3, "a"]
    assert instantiate(5) == 5 and instantiate({"a": 1}) == {"a": 1}


def test_instantiate_targets():
    assert isinstance(instantiate({"_target_": "torch.nn.Identity"}), torch.nn.Identity)
    assert instantiate({"_target_": "torch.optim.sgd.SGD", "params": [torch.zeros(1)], "lr": 0.5}).defaults["lr"] == 0.5
    point = instantiate(LazyCall(Point)(x=3))
    assert (type(point).__name__, point.x, point.y) == ("Point", 3, 2)
    structured = instantiate(OmegaConf.structured(Point(x=7)))
    assert isinstance(structured, Point) and structured.x == 7


def test_instantiate_errors(caplog):
    with pytest.raises(TypeError):
        instantiate(LazyCall(weighted_sum)(vals=[1]))
    assert "weighted_sum" in caplog.text
    with pytest.raises(Exception, match=r"no\.such"):
        instantiate({"_target_": "no.such.thing"})
    with pytest.raises(TypeError):
        LazyCall(3)


def test_lazy_call_is_a_config():
    cfg = LazyCall(torch.nn.Conv2d)(in_channels=3, out_channels=8, kernel_size=1)
    cfg.out_channels = 4
    assert isinstance(cfg, DictConfig) and cfg._target_ is torch.nn.Conv2d
    assert instantiate(cfg).weight.shape == (4, 3, 1, 1)


SAVED = """\
betas: [0.9, 0.999]
depth: ${model.in_features}
model: {_target_: torch.nn.Linear, bias: true, in_features: 3, out_features: 2}
nothing: null
optimizer:
  _target_: torch.optim.AdamW
  lr: 0.0001
  params: {_target_: math.prod}
text: 'yes: no'
"""


def test_save_and_reload(tmp_path):
    cfg = OmegaConf.create(
        {"betas": (0.9, 0.999), "depth": "${model.in_features}", "nothing": None, "text": "yes: no"},
        flags={"allow_objects": True},
    )
    cfg.model = LazyCall(torch.nn.Linear)(in_features=3, out_features=2, bias=True)
    cfg.optimizer = LazyCall(torch.optim.AdamW)(params=LazyCall(math.prod)(), lr=1e-4)
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(cfg, path)
    assert cfg.model._target_ is torch.nn.Linear  # the config itself is untouched
    assert Path(path).read_text(encoding="utf-8") == SAVED
    loaded = LazyConfig.load(path)
    assert loaded.depth == 3 and list(loaded.betas) == [0.9, 0.999]
    assert instantiate(loaded.model).weight.shape == (2, 3)
    LazyConfig.apply_overrides(loaded, ["model.in_features=6"])
    assert loaded.depth == 6


def test_saving_what_yaml_cannot_hold_warns(tmp_path, caplog):
    cfg = LazyCall(collect)(function=lambda x: x)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert "config.yaml" in caplog.text


def test_a_function_of_a_config_file_can_be_called_and_written(configs, caplog):
    text = """
        from detrx.d2.config import LazyCall as L

        def double(x):
            return 2 * x

        call = L(double)(x=4)
    """
    cfg = LazyConfig.load(write(configs, "function.py", text))
    assert instantiate(cfg.call) == 8
    LazyConfig.save(cfg, str(configs / "saved.yaml"))
    assert "saved.yaml" in caplog.text  # it cannot be loaded, which is said
    assert "x: 4" in (configs / "saved.yaml").read_text()


def test_both_providers_save_the_same_config_the_same_way(configs):
    theirs = pytest.importorskip("detectron2.config").LazyConfig
    from detrx.d2.embedded.config import LazyConfig as ours

    for name in FILES:
        saved = []
        for provider in (theirs, ours):
            cfg = provider.load(str(configs / name))
            provider.apply_overrides(cfg, ["x.y=[1,{a:b}]"])
            provider.save(cfg, str(configs / "saved.yaml"))
            saved.append((configs / "saved.yaml").read_text())
        assert saved[0] == saved[1]
