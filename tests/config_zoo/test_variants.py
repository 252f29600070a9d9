"""Variants: configs that a `variants.yaml` lists, made from other configs, without files of their own."""

import re
import shutil
from pathlib import Path

import pytest

from detrx import config_zoo, model_zoo
from detrx.analysis.study import load_study
from detrx.config_zoo import catalog
from detrx.d2.config import LazyConfig
from detrx.engine import ConfigError, check_overrides, load_config
from detrx.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[2]
NAME = "dino/dino_swin_l_36ep"
VARIANTS = [name for name in model_zoo.list_models() if catalog.find(name).base is not None]
variant = LazyConfig.load(str(ROOT / "configs" / "common" / "variants.py"), "variant")


@pytest.mark.parametrize("name", VARIANTS)
def test_tables(name: str):
    entry = catalog.find(name)
    assert entry.base.is_file() and not entry.path.exists()
    changes = dict(entry.changes)
    overrides = changes.pop("overrides", [])
    assert changes or overrides
    cfg = LazyConfig.load(str(entry.base))
    variant(cfg, **changes)
    check_overrides(cfg, overrides)
    assert LazyConfig.apply_overrides(cfg, overrides) == model_zoo.get_config(name)


def test_a_variant_is_its_base_with_what_its_line_says():
    base, cfg = (model_zoo.get_config(name) for name in ("dino/dino_r50", "dino/dino_swin_l_5scale_36ep"))
    assert cfg.model.backbone.name == "swin_large_patch4_window12_384.ms_in22k"
    assert list(cfg.model.neck.in_features) == list(cfg.model.backbone.out_features) == ["res2", "res3", "res4", "res5"]
    assert list(cfg.model.neck.in_channels) == [192, 384, 768, 1536] and cfg.model.tokenizer.num_levels == 5
    assert cfg.train.max_iter == 270000
    for changed in (base, cfg):
        del changed.model.backbone, changed.model.neck, changed.model.tokenizer, changed.lr_multiplier, changed.train
    assert cfg == base


def test_a_variant_has_settings_of_its_own():
    cfg = model_zoo.get_config("h_detr/h_deformable_detr_swin_l_900q_36ep")
    assert cfg.model.backbone.model_args.drop_path_rate == 0.5 and cfg.model.query_source.num_queries == 900
    cfg = model_zoo.get_config("d3etr/d3etr_detr_r18_dc5")
    assert cfg.model.methods[0].teacher == "detr/detr_r101_dc5_50ep.py"


@pytest.mark.parametrize("name", ["dino/dino_r50", NAME, "h_detr/h_deformable_detr_swin_t", "common/data/digits"])
def test_names_and_paths_of_a_config(name: str):
    folder, config = name.rsplit("/", 1)
    path = f"projects/{folder}/configs/{config}.py" if folder == "h_detr" else f"configs/{name}.py"
    for given in (name, f"{name}.py", path, Path(path), ROOT / path, f"/projects/elsewhere/{path}"):
        assert config_zoo.name_of(given) == f"{name}.py"


@pytest.mark.parametrize(
    "given", ["dino_swin_l_36ep", "other/dino/dino_swin_l_36ep.py", "myconfigs/dino/dino_r50.py", ""]
)
def test_what_is_no_config_of_the_zoo(given: str):
    assert config_zoo.name_of(given) is None


@pytest.mark.parametrize("given", [NAME, f"{NAME}.py", f"configs/{NAME}.py", str(ROOT / "configs" / f"{NAME}.py")])
def test_tools_take_a_name_or_the_path_of_before(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(given, []) == load_config(NAME, [])
    study = tmp_path / "study.yaml"
    study.write_text(f"title: t\ndescription: d\nseeds: [1]\nvariants: {{a: {{config: {given}}}}}\n")
    assert load_study(study).variants[0].config == given


def test_a_file_counts_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dino").mkdir()
    (tmp_path / f"{NAME}.py").write_text("mine = dict(a=1)\n")
    assert config_zoo.read_config(f"{NAME}.py") == {"mine": {"a": 1}}
    assert "model" in config_zoo.read_config(NAME)


def test_a_variant_has_no_file():
    with pytest.raises(FileNotFoundError, match=rf"{NAME} has no file: .*dino_r50\.py by .*variants\.yaml.*get_config"):
        model_zoo.get_config_file(NAME)


@pytest.mark.parametrize("given", ["dino/dino_swin_l_37ep", "/some/where/dino/dino_swin_l_37ep.py"])
def test_what_is_not_there(given: str):
    with pytest.raises(ConfigError, match=rf"config file {given} does not exist.*{NAME}\.py"):
        load_config(given, [])


def test_the_config_that_the_readme_shows(tmp_path: Path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "configs" / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    cfg = LazyConfig.load(str(tmp_path / "mine.py"))
    expected = model_zoo.get_config("dino/dino_swin_l_36ep")
    expected.model.query_source.num_queries = 300
    assert cfg == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("dino_r50: {dino_r9: {backbone: r9}}", r"dino_r9: backbone is 'r9', expected r18, r50, "),
        ("dino_r50: {dino_r9: {stage: c4}}", r"dino_r9: stage is 'c4', expected c5, dc5"),
        ("dino_r50: {dino_r9: {levels: 7}}", r"dino_r9: levels is 7, expected 4, 5"),
        ("dino_r50: {dino_r9: {epochs: 99}}", r"dino_r9: epochs is 99, expected 12, 24, 36, 48, 50, 64"),
        ("dino_r50: {dino_r9: {dataset: kitti}}", r"dino_r9: dataset is 'kitti', expected coco, lvis, objects365, "),
        (
            "dino_digits: {dino_r9: {epochs: 24}}",
            r"dino_r9: dataloader\.train\.dataset\.names is 'digits_train'",
        ),
        ("dino_r50: {dino_r9: {depth: 9}}", r"dino_r9: .*'depth'"),
        (
            "dino_digits: {dino_r9: {stage: c5}}",
            r"model\.backbone\.name is 'resnet18', expected resnet18\.tv_",
        ),
        ("dino_r60: {dino_r9: {epochs: 24}}", r"dino_r9: there is no dino_r60\.py"),
        ("dino_r50: {dino_r9: }", r"variants\.yaml does not list variants as"),
        ("dino_r50: [dino_r9]", r"variants\.yaml does not list variants as"),
        ("dino_r50: {dino_r9: {", r"variants\.yaml does not list variants as"),
    ],
)
def test_mistakes_in_a_table(table: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "dino" / "variants.yaml").write_text(table)
    for module in (config_zoo, catalog):
        monkeypatch.setattr(module, "config_root", lambda: tmp_path / "configs")
    with pytest.raises(InvalidInputError, match=message):
        model_zoo.get_config("dino/dino_r9")
