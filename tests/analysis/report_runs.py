"""Run folders for the tests of the report, with names that would be markup if not escaped; and a reader of pages."""

import contextlib
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import yaml
from PIL import Image

from detrx.d2.data import DatasetCatalog, MetadataCatalog, register_coco_instances

EVIL = '<script>alert("class")</script>'
PLAIN = "b & c"
SECTIONS = ("summary", "run", "curves", "ap", "detections", "confusion", "precision-recall", "scores", "queries")

# Two objects in each of four images: class EVIL (id 3) on the left, PLAIN (id 7) on the right.
LEFT, RIGHT = [4, 8, 20, 20], [36, 6, 20, 30]
RESULTS = [
    (1, 3, LEFT, 0.9),
    (1, 7, RIGHT, 0.8),  # image 1: all correct
    (2, 7, LEFT, 0.7),
    (2, 7, RIGHT, 0.6),  # image 2: the left one taken for the other class
    (3, 3, [0, 0, 6, 6], 0.5),
    (3, 3, [50, 30, 6, 6], 0.4),
    (3, 7, RIGHT, 0.35),  # image 3: two detections of nothing
    (4, 3, LEFT, 0.2),  # image 4: both missed by a threshold of 0.3
]


@contextlib.contextmanager
def small_dataset(folder: Path, name: str = "detrx_test_report") -> Iterator[str]:
    """Register four images with eight objects."""
    images = [{"id": i, "file_name": f"im<i>{i}.png", "width": 60, "height": 40} for i in range(1, 5)]
    for each in images:
        picture = Image.new("RGB", (60, 40), (20 * each["id"], 60, 90))
        picture.paste((255, 255, 255), (4, 8, 24, 28))
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / each["file_name"])
    annotations = [
        {"image_id": each["id"], "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for each in images
        for label, box in ((3, LEFT), (7, RIGHT))
    ]
    annotations = [{"id": number, **each} for number, each in enumerate(annotations, start=1)]
    categories = [{"id": 3, "name": EVIL}, {"id": 7, "name": PLAIN}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    register_coco_instances(name, {}, str(folder / "annotations.json"), str(folder))
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(dataset: str) -> dict:
    return {
        "model": {
            "_target_": "detrx.modeling.DetectionTransformer",
            "backbone": {"_target_": "detrx.modeling.TimmBackbone", "name": "resnet18"},
            "decoder": {"_target_": "detrx.modeling.Decoder", "num_layers": 3},
            "methods": [{"_target_": "detrx.projects.mr_detr.MrDETR", "top_k": 6}],
        },
        "dataloader": {
            "train": {"dataset": {"names": EVIL}, "total_batch_size": 4},
            "test": {"dataset": {"names": dataset}},
        },
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001},
        "lr_multiplier": {"_target_": "fvcore.common.param_scheduler.CosineParamScheduler"},
        "train": {"max_iter": 200, "seed": 3, "output_dir": EVIL, "amp": {"enabled": False, "dtype": "bfloat16"}},
    }


LOG = """[11/21 14:26:50] detrx INFO: Command line arguments: Namespace(config_file='old.py', opts=[])
[11/21 14:26:50] detrx INFO: Starting training from iteration 0
[11/21 14:27:50] detrx INFO: Total training time: 0:01:00 (0:00:00 on hooks)
[11/21 14:28:50] detrx INFO: Command line arguments: Namespace(config_file='<b>new.py', resume=True, \
opts=['train.output_dir=x', 'optimizer.lr=0.1'], dist_url=None)
[11/21 14:28:51] detrx INFO: Environment:
CPU: Some <i>CPU</i>, 2 cores
torch: 2.11.0 (CUDA 13.0, /somewhere)
python: 3.11.7 (/elsewhere)
[11/21 14:28:52] detrx INFO: Starting training from iteration 100
[11/21 14:30:52] detrx INFO: Total training time: 1 day, 0:02:00 (0:00:00 on hooks)
"""


def write_run(folder: Path, dataset: str) -> Path:
    """A complete run, but for its checkpoint."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(dataset)))
    (folder / "log.txt").write_text(LOG)
    lines = [
        {
            "iteration": i,
            "total_loss": 30 / (i + 1),
            "loss_class": 20 / (i + 1),
            "loss_bbox_0": 5 / (i + 1),
            "lr": 1e-3,
            "time": 0.5,
            "moe/encoder_effective_experts": 3.5,
            "routing/passing_0": 20.0,
            "routing/passing": 15.0,
            "own<b>": 1.0,
        }
        for i in range(19, 200, 20)
    ]
    for i, ap in ((100, 20.0), (200, 41.25)):
        values = {"bbox/AP": ap, "bbox/AP50": 60.0, "bbox/AP75": 30.0, "bbox/APs": ap, "bbox/APl": float("nan")}
        lines.append({"iteration": i, **values, f"bbox/AP-{EVIL}": 33.0, f"bbox/AP-{PLAIN}": 44.5})
    (folder / "metrics.json").write_text("\n".join(json.dumps(line) for line in lines))
    write_results(folder)
    return folder


def write_results(folder: Path) -> None:
    file = folder / "inference" / "coco_instances_results.json"
    file.parent.mkdir(exist_ok=True)
    keys = ("image_id", "category_id", "bbox", "score")
    file.write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in RESULTS]))


class Page(HTMLParser):
    """What a browser would see: ids, tags with attributes, and the text of each section and table row."""

    EMPTY = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if attributes.get("id")]

    @property
    def section(self) -> str:
        return next((str(a["id"]) for tag, a in self.open if tag in ("section", "header") and "id" in a), "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(self.tags[-1])
        if tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        if "script" in inside:
            self.scripts.append(data)
        elif "style" not in inside:
            self.sections[self.section] = self.sections.get(self.section, "") + data
            if "tr" in inside and self.rows[self.section][-1]:
                self.rows[self.section][-1][-1] += data
