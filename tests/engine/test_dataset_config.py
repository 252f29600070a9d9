"""COCO files of one's own, given as `dataset.*` to any config."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detrx.d2.config import LazyConfig, instantiate
from detrx.d2.data import DatasetCatalog, MetadataCatalog
from detrx.data import get_detection_dataset_dicts
from detrx.data.check.dataset import check_config
from detrx.engine import ConfigError, check_evaluation, load_config
from detrx.modeling import PredictionHeads

DINO = "dino/dino_digits.py"
CLASSES = {2: "cat", 5: "dog", 9: "bird"}


def coco(classes: dict[int, str] = CLASSES) -> dict:
    return {
        "images": [{"id": 4, "file_name": "a.png", "width": 40, "height": 30}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": max(classes), "bbox": [1, 2, 9, 8], "area": 72, "iscrowd": 0}
        ],
        "categories": [{"id": i, "name": name} for i, name in reversed(classes.items())],
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a custom dataset, which is the current one."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}.json").write_text(json.dumps(coco()))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in DatasetCatalog if name.startswith(("custom_", "birds_"))]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


TRAIN = ["dataset.train_json=train.json", "dataset.train_images=train"]
VAL = ["dataset.val_json=val.json", "dataset.val_images=val"]
FILES = [*TRAIN, *VAL]


def load(*overrides: str, config: str = DINO):
    return load_config(config, list(overrides))


def test_loaders_evaluator_and_classes(folder: Path):
    cfg = load(*FILES, config="dino/dino_r50.py")
    assert cfg.dataloader.train.dataset.names == "custom_train"
    assert cfg.dataloader.test.dataset.names == cfg.dataloader.evaluator.dataset_name == "custom_val"
    (record,) = get_detection_dataset_dicts("custom_train")
    assert record["file_name"] == str(folder / "train" / "a.png")
    assert record["annotations"][0]["category_id"] == 2
    metadata = MetadataCatalog.get("custom_val")
    assert metadata.thing_classes == ["cat", "dog", "bird"]
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1, 9: 2}
    assert metadata.json_file == str(folder / "val.json") and metadata.evaluator_type == "coco"


@pytest.mark.parametrize(
    "config",
    [
        "detr/detr_digits.py",
        "conditional_detr/conditional_detr_digits.py",
        "dab_detr/dab_detr_digits.py",
        "dn_detr/dn_detr_digits.py",
        "deformable_detr/deformable_detr_digits.py",
        "deformable_detr/deformable_detr_one_stage_digits.py",
        "deformable_detr/deformable_detr_two_stage_r50.py",
        "dino/dino_digits.py",
        "dino/dino_r50.py",
        "align_detr/align_detr_digits.py",
        "h_detr/h_deformable_detr_digits.py",
        "mr_detr/mr_detr_pp_dino_digits.py",
        "mr_detr/mr_detr_deformable_calibrated_digits.py",
        "qr_detr/qr_conditional_detr_digits.py",
        "paq_detr/paq_dn_detr_digits.py",
        "paq_detr/paq_dino_digits.py",
        "d3etr/d3etr_detr_digits.py",
    ],
)
def test_whole_model_has_the_classes_of_the_files(folder: Path, config: str):
    """Every layer that had one unit per class in the model of the config has one per class of the files."""
    cfg, plain = load(*FILES, config=config), load(config=config)
    before = plain.model.decoder.heads.num_classes
    for each in (cfg, plain):
        each.model.backbone.pretrained = False
    with torch.device("meta"):
        model, reference = instantiate(cfg.model), instantiate(plain.model)
    shapes, plain_shapes = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, reference))
    assert shapes.keys() == plain_shapes.keys()
    per_class = {k for k in shapes if shapes[k] != plain_shapes[k]}
    for key in per_class:
        assert plain_shapes[key][0] - before == shapes[key][0] - 3 in (0, 1)  # 1: "no object", or an unknown label
        assert plain_shapes[key][1:] == shapes[key][1:]
    others = [k for k in shapes.keys() - per_class if ".tokens." not in k]  # of Mr. DETR: as many as there are digits
    assert not [k for k in others if {*plain_shapes[k]} & {before, before + 1}]
    heads = [m for m in model.modules() if isinstance(m, PredictionHeads)]
    assert heads and all(len(h.class_heads[0].bias) in (3, 4) for h in heads)


def test_other_overrides_come_after(folder: Path):
    cfg = load(*FILES, "dataset.name=birds", "dataloader.train.dataset.names=digits_train")
    assert cfg.dataloader.train.dataset.names == "digits_train"
    assert cfg.dataloader.test.dataset.names == "birds_val"
    cfg = load(*FILES, "dataloader.test.dataset.names=digits_val")
    assert cfg.dataloader.train.dataset.names == "custom_train"
    assert cfg.dataloader.evaluator.dataset_name == "digits_val"


def test_without_files_nothing_changes(folder: Path):
    cfg = load("dataloader.train.dataset.names=digits_large_train")
    assert "dataset" not in cfg
    assert cfg.dataloader.train.dataset.names == "digits_large_train" and cfg.model.decoder.heads.num_classes == 10


def forget() -> None:
    for name in ("custom_train", "custom_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_saved_config_finds_the_dataset_again(folder: Path, tmp_path_factory, monkeypatch):
    saved = str(folder / "config.yaml")
    LazyConfig.save(load(*FILES, "dataloader.train.dataset.names=digits_train"), saved)
    forget()
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    cfg = load_config(saved, [])
    assert cfg.dataloader.train.dataset.names == "digits_train", "what was set explicitly stays so"
    assert cfg.dataloader.evaluator.dataset_name == "custom_val" and cfg.model.decoder.heads.num_classes == 3
    assert len(get_detection_dataset_dicts("custom_val")) == 1


def test_saved_config_without_the_files_still_knows_the_classes(folder: Path):
    saved = str(folder / "config.yaml")
    LazyConfig.save(load(*FILES), saved)
    forget()
    for split in ("train", "val"):
        (folder / f"{split}.json").unlink()
    load_config(saved, [])
    assert MetadataCatalog.get("custom_val").thing_classes == ["cat", "dog", "bird"]
    with pytest.raises(FileNotFoundError, match=r"val\.json of dataset 'custom_val' does not exist"):
        get_detection_dataset_dicts("custom_val")
    (folder / "test.json").write_text(json.dumps(coco()))
    cfg = load_config(saved, ["dataset.val_json=test.json"])
    assert cfg.dataset.val_json == str(folder / "test.json")
    assert len(get_detection_dataset_dicts("custom_val")) == 1
    (folder / "test.json").write_text(json.dumps(coco({2: "cat", 5: "cow", 9: "bird"})))
    with pytest.raises(ConfigError, match=r"dataset\.categories and .*test\.json differ: id 5 is 'dog' .*, 'cow'"):
        load_config(saved, ["dataset.val_json=test.json"])


def test_saved_config_with_another_dataset(folder: Path):
    saved = str(folder / "config.yaml")
    LazyConfig.save(load(*FILES), saved)
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(coco({0: "fish", 1: "fly"})))
    cfg = load_config(saved, ["dataset.name=birds", *FILES, "dataset.train_json=./val.json"])
    assert cfg.model.decoder.heads.num_classes == 2 and cfg.dataloader.train.dataset.names == "birds_train"
    assert MetadataCatalog.get("birds_train").thing_classes == ["fish", "fly"]


def test_loading_again_replaces_the_dataset(folder: Path):
    load(*FILES)
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(coco({7: "fly"})))
    assert load(*FILES).model.decoder.heads.num_classes == 1
    assert MetadataCatalog.get("custom_train").thing_classes == ["fly"]


def test_training_without_validation(folder: Path):
    with pytest.raises(ConfigError, match=r"train\.eval_period=\d+ evaluates, but there is no dataset\.val_json"):
        check_evaluation(load(*TRAIN))
    check_evaluation(load(*FILES))
    cfg = load(*TRAIN, "train.eval_period=0")
    check_evaluation(cfg)
    assert cfg.dataloader.test.dataset.names == "custom_val"
    assert MetadataCatalog.get("custom_val").thing_classes == ["cat", "dog", "bird"]
    with pytest.raises(ValueError, match=r"'custom_val' has no files: give dataset\.val_json=FILE and dataset\.val_im"):
        get_detection_dataset_dicts("custom_val")
    (folder / "train" / "a.png").touch()
    assert [checked.name for checked in check_config(cfg, decode=False)] == ["custom_train"]


def test_evaluation_without_training_files(folder: Path):
    cfg = load(*VAL)
    assert cfg.model.decoder.heads.num_classes == 3 and cfg.dataloader.train.dataset.names == "custom_train"
    with pytest.raises(ValueError, match="'custom_train' has no files"):
        get_detection_dataset_dicts("custom_train")


def test_config_file_with_a_dataset(folder: Path):
    config = folder / "mine.py"
    config.write_text(
        "from detrx import model_zoo\n"
        f"_cfg = model_zoo.get_config({DINO!r})\n"
        "model, dataloader, optimizer, lr_multiplier, train = (\n"
        "    _cfg[k] for k in ('model', 'dataloader', 'optimizer', 'lr_multiplier', 'train'))\n"
        "dataset = dict(name='birds', train_json='train.json', train_images='train', val_json='val.json',\n"
        "               val_images='val')\n"
    )
    cfg = load_config(str(config), [])
    assert cfg.dataloader.train.dataset.names == "birds_train" and cfg.model.decoder.heads.num_classes == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.trian_json=a.json"], r"unknown config key 'dataset.trian_json'; did you mean dataset\.train_json"),
        (["+dataset.test_json=a.json", *FILES], r"dataset\.test_json is unknown; dataset has name, train_json"),
        (["dataset.name=birds"], r"dataset\.name=birds has no files: give dataset\.train_json"),
        (["dataset.train_json=train.json", *VAL], r"dataset\.train_json is given, but not dataset\.train_images"),
        (["dataset.val_images=val", *TRAIN], r"dataset\.val_images is given, but not dataset\.val_json"),
        (["dataset.train_json=no.json", "dataset.train_images=train"], r"dataset\.train_json=.*no\.json: there is no"),
        (
            ["dataset.train_json=train.json", "dataset.train_images=no"],
            r"dataset\.train_images=.*/no: there is no ",
        ),
        ([*FILES, "dataset.name=digits"], r"dataset 'digits_train' exists already: choose another dataset\.name"),
        ([*FILES, "model.decoder.heads.num_classes=80"], r"num_classes=80, but dataset 'custom' has 3 classes"),
        ([*FILES, "+model.methods.0.num_classes=7"], r"model\.methods\.0\.num_classes=7, but dataset 'custom' has 3"),
    ],
)
def test_mistakes(folder: Path, overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load(*overrides)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: json.dumps(c)[:-5], r"val\.json: not valid JSON"),
        (lambda c: json.dumps([c]), r"val\.json: expected an object with images, .*, categories, got list"),
        (lambda c: json.dumps({**c, "categories": []}), r"val\.json: its list 'categories' is empty"),
        (lambda c: json.dumps({**c, "categories": [{"id": 1}]}), r"val\.json: categories\[0\] has no 'name'"),
        (lambda c: json.dumps({**c, "categories": c["categories"] * 2}), r"val\.json: category id 9 occurs twice"),
        (
            lambda c: json.dumps(coco({2: "cat", 5: "dog"})),
            r"train\.json and .*val\.json differ: id 9 is 'bird' in the first, None in the second",
        ),
    ],
)
def test_faulty_files(folder: Path, damage: Callable[[dict], str], message: str):
    (folder / "val.json").write_text(damage(coco()))
    with pytest.raises(ConfigError, match=message):
        load(*FILES)


def test_number_of_classes_of_the_backbone_is_its_own(folder: Path):
    assert load(*FILES, "+model.backbone.model_args.num_classes=0").model.decoder.heads.num_classes == 3


def test_lvis_evaluator_does_not_read_coco_files(folder: Path):
    with pytest.raises(ConfigError, match="this config has an LVISEvaluator"):
        load(*FILES, config="dino/dino_r50_lvis.py")


def test_config_without_such_heads(folder: Path):
    config = folder / "other.yaml"
    config.write_text(
        "{model: {}, optimizer: {}, lr_multiplier: {}, train: {eval_period: 0}, "
        "dataloader: {train: {dataset: {names: a}}, test: {dataset: {names: b}}}}"
    )
    with pytest.raises(ConfigError, match=r"dataset\.\* sets model\.decoder\.heads\.num_classes, which this config"):
        load_config(str(config), FILES)


def test_a_config_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_bytes("train: größe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read as (utf-8|ascii): \w+"):
        load_config(str(tmp_path / "config.yaml"), [])


@pytest.mark.parametrize("name", ["größe (neu)", "it's, [a] {b}=c", "a${b", "2024", "back\\slash", " spaces "])
def test_folders_of_any_name(folder: Path, name: str):
    place = folder / name
    place.mkdir()
    for split in ("train", "val"):
        (folder / split).rename(place / split)
        (folder / f"{split}.json").rename(place / f"{split}.json")
    files = [f"dataset.{split}_{kind}={name}/{split}{suffix}"
             for split in ("train", "val") for kind, suffix in (("json", ".json"), ("images", ""))]  # fmt: skip
    cfg = load(*files, f"train.output_dir={place / 'out'}")
    (record,) = get_detection_dataset_dicts("custom_train")
    assert record["file_name"] == str(place / "train" / "a.png")
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    again = load_config(str(folder / "config.yaml"), [])
    assert again.dataset.val_json == str(place / "val.json") and again.train.output_dir == str(place / "out")
    assert MetadataCatalog.get("custom_val").json_file == str(place / "val.json")
