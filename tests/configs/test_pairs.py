"""Each config with a method differs from its baseline in the method alone."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from detrx import config_zoo, model_zoo
from detrx.analysis.study import load_study
from detrx.config_zoo.yaml_files import read_yaml
from detrx.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = sorted(path.parent.name for path in ROOT.glob("projects/*/configs"))
NAMES = [name.removesuffix(".py") for name in model_zoo.list_models()]
PAPERS = ROOT / "benchmarks" / "results" / "papers.yaml"
METHODS = [name for name in NAMES if name.split("/")[0] in PROJECTS and "/baseline_" not in name]


@functools.cache
def content(name: str) -> dict:
    """A config as plain values, with the names of what it calls."""
    return plain(model_zoo.get_config(name))


def plain(node: object) -> object:
    if isinstance(node, DictConfig):
        return {key: node._get_node(key)._value() if interpolated(node, key) else plain(node[key]) for key in node}
    if isinstance(node, ListConfig):
        return [plain(node[index]) for index in range(len(node))]
    return f"{node.__module__}.{node.__qualname__}" if callable(node) else node


def interpolated(node: DictConfig, key: str) -> bool:
    return OmegaConf.is_interpolation(node, key)


def without(node: object, project: str) -> object:
    """`node` without the entries of lists that call something of the project."""
    if isinstance(node, Mapping):
        return {key: without(value, project) for key, value in node.items()}
    if isinstance(node, list):
        return [without(value, project) for value in node if not belongs(value, project)]
    return node


def belongs(value: object, project: str) -> bool:
    return isinstance(value, Mapping) and str(value.get("_target_", "")).startswith(f"detrx.projects.{project}.")


def remove(node: dict, key: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        node = node.get(parent, {})
    node.pop(last, None)


def differences(a: object, b: object, where: str = "") -> list[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [
            each
            for key in sorted({*a, *b})
            for each in differences(a.get(key, "(nothing)"), b.get(key, "(nothing)"), f"{where}.{key}".lstrip("."))
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [each for i, (x, y) in enumerate(zip(a, b, strict=True)) for each in differences(x, y, f"{where}.{i}")]
    return [] if a == b else [f"{where}: {a} with the method, {b} without"]


def drift(method: dict, baseline: dict, project: str, sets: tuple[str, ...]) -> list[str]:
    """What differs beside the method; and keys that it is said to set, but does not. What a value in `sets` takes over
    from the baseline, such as the detections that are calibrated, is compared, too."""
    method, baseline = without(method, project), without(baseline, project)
    within = [found for key in sets for found in taken_over(find(method, key), find(baseline, key), key)]
    idle = [f"{key} is the same" for key in sets if find(method, key) == find(baseline, key)]
    for key in sets:
        remove(method, key)
        remove(baseline, key)
    return idle + within + differences(method, baseline)


def taken_over(method: object, baseline: object, key: str) -> list[str]:
    """Differences where the value of the method holds the one that it replaces, or has arguments of the same name."""
    if not isinstance(method, Mapping) or not isinstance(baseline, Mapping):
        return []
    for name, value in method.items():
        if isinstance(value, Mapping) and value.get("_target_") == baseline.get("_target_"):
            return differences(value, baseline, f"{key}.{name}")
    names = {"embed_dim", "dropout"} & set(method) & set(baseline)
    return differences({name: method[name] for name in names}, {name: baseline[name] for name in names}, key)


def find(node: object, key: str) -> object:
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_all_that_a_config_adds_to_its_baseline(name: str):
    project, pair = name.split("/")[0], config_zoo.pair_of(name)
    assert pair is not None, f"projects/{project}/configs/pairs.yaml does not list {name}"
    assert pair.baseline in NAMES and config_zoo.pair_of(pair.baseline) is None
    found = drift(content(name), content(pair.baseline), project, pair.sets)
    assert not found, f"{name} and {pair.baseline} differ in more than the method: {'; '.join(found)}"
    readme = (ROOT / "projects" / project / "README.md").read_text(encoding="utf-8")
    unsaid = [key for key in pair.sets if f"`{key}`" not in readme]
    assert not unsaid, f"projects/{project}/README.md does not say that the method sets {unsaid}"


@pytest.mark.parametrize("project", PROJECTS)
def test_tables_list_configs_that_there_are(project: str):
    table = ROOT / "projects" / project / "configs" / "pairs.yaml"
    listed = re.findall(r"^(\w+):", table.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {f"{project}/{name}" for name in listed} <= set(METHODS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.criterion.supervisions.0.losses.0.weight", 1.0),
        ("model.criterion.supervisions.1.weight", 2.0),
        ("model.query_source.num_queries", 301),
        ("model.postprocess.num_detections", 300),
        ("dataloader.train.total_batch_size", 8),
        ("optimizer.lr", 2e-4),
        ("train.max_iter", 1),
    ],
)
def test_drift_is_found(key: str, value: object):
    name = "h_detr/h_deformable_detr_r50"
    cfg = model_zoo.get_config(name)
    OmegaConf.update(cfg, key, value)
    pair = config_zoo.pair_of(name)
    (found,) = drift(plain(cfg), content(pair.baseline), "h_detr", pair.sets)
    assert found.startswith(f"{key}: {value} with the method")


@pytest.mark.parametrize(
    ("key", "value"), [("postprocess.detections.score_threshold", 0.05), ("decoder.layer.ffn.dropout", 0.3)]
)
def test_drift_is_found_within_what_a_method_sets(key: str, value: object):
    name = "mr_detr/mr_detr_pp_deformable_r50"
    cfg = model_zoo.get_config(name)
    OmegaConf.update(cfg, f"model.{key}", value)
    pair = config_zoo.pair_of(name)
    (found,) = drift(plain(cfg), content(pair.baseline), "mr_detr", pair.sets)
    assert found.startswith(f"model.{key}: {value} with the method")


def test_what_a_method_does_not_set_is_found():
    name = "mr_detr/mr_detr_deformable_r50"
    pair = config_zoo.pair_of(name)
    found = drift(content(name), content(pair.baseline), "mr_detr", ("model.decoder.layer.ffn",))
    assert found == ["model.decoder.layer.ffn is the same"]


STUDIES = sorted((ROOT / "benchmarks" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_studies_have_the_baselines_of_their_methods(study: Path):
    """Or name the study that has them."""
    configs = configs_of(study)
    wanted = {pair.baseline for name in configs if (pair := config_zoo.pair_of(name))}
    named = {study.with_name(name) for name in re.findall(r"\w+\.yaml", study.read_text(encoding="utf-8"))}
    for other in named & set(STUDIES):
        configs |= configs_of(other)
    missing = wanted - configs
    assert not missing, f"{study.name} has methods, but neither has nor names a study with {sorted(missing)}"


def configs_of(study: Path) -> set[str]:
    return {config_zoo.name_of(variant.config).removesuffix(".py") for variant in load_study(study).variants}


def test_figures_of_papers_have_those_of_the_baselines():
    """Or say that the sources have none."""
    rows = {row["config"]: row.get("note", "") for table in read_yaml(PAPERS) for row in table["rows"]}
    for name, note in rows.items():
        baseline = model_zoo.baseline(name)
        assert baseline is None or (baseline in rows) != ("no figure of the baseline" in note), (
            f"{PAPERS.name}: {name} needs a row of its baseline {baseline}, or the note 'no figure of the baseline'"
        )


def test_baselines_by_name():
    assert model_zoo.baseline("mr_detr/mr_detr_pp_dino_r50.py") == "mr_detr/baseline_dino_r50"
    assert model_zoo.baseline("mr_detr/baseline_dino_r50") is None and model_zoo.baseline("dino/dino_r50") is None
    with pytest.raises(FileNotFoundError, match="no config 'mr_detr/mr_detr_dino_r51"):
        model_zoo.baseline("mr_detr/mr_detr_dino_r51")


@pytest.mark.parametrize("text", ["[a, b]", "mine: deformable", "mine: {sets: [model.methods]}"])
def test_a_table_that_is_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "pairs.yaml").write_text(text)
    monkeypatch.setattr(config_zoo.pairs, "find", lambda name: config_zoo.catalog.Entry(tmp_path / "mine.py"))
    with pytest.raises(InvalidInputError, match=r"pairs\.yaml does not list pairs as `config: "):
        config_zoo.pair_of("mine")
