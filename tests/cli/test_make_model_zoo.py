import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detrx import model_zoo
from detrx.cli.make_model_zoo import paper_tables, read_papers

ROOT = Path(__file__).resolve().parents[2]
PAPERS = yaml.safe_load((ROOT / "benchmarks" / "results" / "papers.yaml").read_text())
DATASETS = {
    "COCO": "coco_2017_val",
    "LVIS": "lvis_v1_val",
    "Objects365": "objects365_v2_val",
    "nuImages": "nuimages_val",
    "Cityscapes": "cityscapes_val",
}
EPOCH = {"COCO": 7500, "LVIS": 7500, "Objects365": 108894, "nuImages": 4205}  # iterations
BACKBONES = {"resnet18": "R18", "resnet50": "R50", "resnet101": "R101", "swin_tiny": "Swin-T", "swin_large": "Swin-L"}


def test_the_model_zoo_is_written_from_the_records():
    result = subprocess.run(
        [sys.executable, "tools/make_model_zoo.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    page = (ROOT / "MODEL_ZOO.md").read_text()
    ours, papers = page.split("## Results of the papers, not ours")
    assert (
        "\n| An auxiliary route that shares everything is worse than the baseline | AP | +6.0 (41.6 → 47.6) | " in ours
    )
    _, *studies = ours.split("\n    python tools/study.py ")
    assert "| DINO |" in "".join(studies) and "arXiv" not in "".join(studies)
    without_ap50 = "| `detr/detr_r18` | R18-C5 | 100 | COCO | 12 | 19.7 | 4.5 | 18.8 | 34.8 | Table 1 |"
    assert without_ap50 in papers  # D3ETR does not report it
    assert papers.count("| `") == sum(len(table["rows"]) for table in PAPERS)


@pytest.mark.parametrize("table", PAPERS, ids=lambda table: f"{table['source'].split(',')[0]}, {table['where']}")
def test_figures_of_papers_stand_beside_configs_of_the_same_model_and_schedule(table):
    for row in table["rows"]:
        cfg = model_zoo.get_config(row["config"])
        assert 15 < row["AP"] < 75 and row.get("AP75", 0) < row["AP"] + 10 and row.get("AP50", 100) > row["AP"]
        sizes = [row[key] for key in ("AP_S", "AP_M", "AP_L") if key in row]
        assert sizes == sorted(sizes) and len(sizes) in (0, 3), row
        assert cfg.dataloader.test.dataset.names == DATASETS[row.get("dataset", "COCO")], row
        assert cfg.model.query_source.num_queries == row["queries"], row
        if "epochs" in table:
            assert cfg.train.max_iter == EPOCH[row.get("dataset", "COCO")] * table["epochs"], row
        backbone = next(said for name, said in BACKBONES.items() if cfg.model.backbone.name.startswith(name))
        assert row["backbone"].removesuffix("-C5").removesuffix("-DC5") == backbone, row
        dilated = (cfg.model.backbone.get("model_args") or {}).get("output_stride") == 16
        assert dilated == row["backbone"].endswith("-DC5"), row


ROW = {"config": "detr/detr_r50", "backbone": "R50", "queries": 100}
TABLE = {"source": "A paper", "where": "Table 1", "rows": [ROW]}


def write(file, **changes):
    content = [{**TABLE, "rows": [{**ROW, "AP": 40.0, **changes}]}]
    file.write_text(yaml.safe_dump(content))
    return file


def test_columns_of_papers(tmp_path):
    papers = read_papers(write(tmp_path / "papers.yaml", AP_L=60.0, AP_S=20.0, note="longer"))
    assert "".join(paper_tables(papers)) == (
        "\n### A paper\n\n"
        "| config | backbone | queries | dataset | AP (paper) | AP_S | AP_L | where |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| `detr/detr_r50` | R50 | 100 | COCO | 40.0 | 20.0 | 60.0 | Table 1; longer |\n"
    )
    papers[0]["rows"].append({**papers[0]["rows"][0], "dataset": "LVIS", "metric": "mask AP"})
    lines = "".join(paper_tables(papers)).splitlines()
    assert "| dataset | metric | AP (paper) |" in lines[3] and "| COCO | AP | 40.0 |" in lines[5]
    assert "| LVIS | mask AP | 40.0 |" in lines[6]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"APs": 20.0}, r"papers\.yaml, A paper, Table 1, row 1 needs .* and may have .*'AP_S'.*; it has .*'APs'"),
        ({"AP": "40"}, r"row 1: one or more of AP, AP50, .* must be numbers, got {'AP': '40'}"),
        ({"config": "detr/detr_r49"}, "detr_r49"),
    ],
)
def test_a_mistake_in_the_papers_is_named(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_papers(write(tmp_path / "papers.yaml", **changes))


def test_tables_of_papers_need_their_keys(tmp_path):
    file = tmp_path / "papers.yaml"
    for content, message in (
        ({}, "must be a list of tables"),
        ([{**TABLE, "year": 2024}], "table 1 needs .*'rows'.* it has .*'year'"),
        ([{**TABLE, "rows": []}], "Table 1: rows must be a list"),
        ([TABLE], r"row 1: one or more of AP, .* must be numbers, got {}"),
    ):
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(ValueError, match=message):
            read_papers(file)
