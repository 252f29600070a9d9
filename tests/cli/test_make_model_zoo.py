import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detrx import model_zoo

ROOT = Path(__file__).resolve().parents[2]
PAPERS = yaml.safe_load((ROOT / "benchmarks" / "results" / "papers.yaml").read_text())
BACKBONES = {"resnet18": "R18", "resnet50": "R50", "resnet101": "R101", "swin_tiny": "Swin-T", "swin_large": "Swin-L"}


def test_the_model_zoo_is_written_from_the_records():
    result = subprocess.run(
        [sys.executable, "tools/make_model_zoo.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    ours, papers = (ROOT / "MODEL_ZOO.md").read_text().split("## Results of the papers on COCO, not ours")
    assert "| DINO |" in ours and "arXiv" not in ours
    assert "| `dino/dino_r50` | R50 | 900 | 12 | 49.0 | - | - | Table II |" in papers
    assert papers.count("| `") == sum(len(table["rows"]) for table in PAPERS)


@pytest.mark.parametrize("table", PAPERS, ids=lambda table: f"{table['source'].split(',')[0]}, {table['where']}")
def test_figures_of_papers_stand_beside_configs_of_the_same_model_and_schedule(table):
    assert {"source", "where", "rows"} <= set(table) <= {"source", "where", "rows", "epochs"}
    for row in table["rows"]:
        cfg = model_zoo.get_config(row["config"])
        assert 15 < row["AP"] < 65 and row.get("AP75", 0) < row["AP"] + 10 and row.get("AP50", 100) > row["AP"]
        assert cfg.model.query_source.num_queries == row["queries"], row
        if "epochs" in table:
            assert cfg.train.max_iter == 7500 * table["epochs"], row
        backbone = next(said for name, said in BACKBONES.items() if cfg.model.backbone.name.startswith(name))
        assert row["backbone"].removesuffix("-C5").removesuffix("-DC5") == backbone, row
        dilated = (cfg.model.backbone.get("model_args") or {}).get("output_stride") == 16
        assert dilated == row["backbone"].endswith("-DC5"), row
