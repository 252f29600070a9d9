"""Every row of "Tables and figures of the paper" in the READMEs has commands, and each runs as it is written."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.tiny_instances import ROOT, Stale, Workspace

PAPERS = ("h_detr", "mr_detr", "qr_detr", "paq_detr", "d3etr")
SECTION = "## Tables and figures of the paper"
HEADER = "| in the paper | command |"
NOT_POSSIBLE = "not possible because "


@dataclass(frozen=True)
class Row:
    """A line of the table: what of the paper, in the README of which project, and what the second column says."""

    readme: str
    shown: str
    answer: str

    @property
    def commands(self) -> list[str]:
        return [code for code in re.findall(r"`([^`]+)`", self.answer) if code.startswith(("tools/", "benchmarks/"))]

    def __str__(self) -> str:
        return f"{self.readme}, row {self.shown!r}"


def rows_of(text: str, readme: str) -> list[Row]:
    """The rows of the table in the section of a README; none if it lacks the section or the table."""
    _, _, section = text.partition(f"\n{SECTION}\n")
    lines = re.split(r"\n## ", section)[0].splitlines()
    if HEADER not in lines:
        return []
    rows = []
    for line in lines[lines.index(HEADER) + 2 :]:
        if not line.startswith("|"):
            break
        shown, _, answer = line.strip("| ").partition(" | ")
        rows.append(Row(readme, shown.strip(), answer.strip()))
    return rows


def check_rows(rows: list[Row], readme: str) -> None:
    assert rows, f"{readme} has no section {SECTION!r} with a table {HEADER!r}"
    for row in rows:
        assert row.commands or row.answer.startswith(NOT_POSSIBLE), (
            f"{row}: neither a command in backticks that starts with tools/ or benchmarks/, nor {NOT_POSSIBLE!r}: "
            f"{row.answer!r}"
        )
        others = [code for code in re.findall(r"`([^`]*\.py [^`]*)`", row.answer) if code not in row.commands]
        assert not others, f"{row}: `{others[0]}` must start with tools/ or benchmarks/"


def check_command(workspace: Workspace, row: Row, command: str, beside: Sequence[str] = ()) -> None:
    try:
        workspace.run(command, beside)
    except Stale as error:
        raise AssertionError(f"{row}: `{command}` does not work: {error}") from error


ROWS = {
    paper: rows_of((ROOT / "projects" / paper / "README.md").read_text(encoding="utf-8"), f"projects/{paper}/README.md")
    for paper in PAPERS
}
COMMANDS = {command: row for rows in reversed(ROWS.values()) for row in reversed(rows) for command in row.commands}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with pytest.MonkeyPatch.context() as patch:
        made = Workspace(tmp_path_factory.mktemp("root"), patch)
        yield made
        made.close()


@pytest.mark.parametrize("paper", PAPERS)
def test_readme_has_every_table(paper: str):
    check_rows(ROWS[paper], f"projects/{paper}/README.md")


@pytest.mark.parametrize("command", [*reversed(COMMANDS)])
def test_command(workspace: Workspace, command: str):
    row = COMMANDS[command]
    beside = [each for rows in ROWS.values() for other in rows if other.readme == row.readme for each in other.commands]
    check_command(workspace, row, command, beside)


README = f"""# A method

{SECTION}

Some words.

{HEADER}
|---|---|
| Table 1 | `tools/study.py benchmarks/studies/query_routing_digits.yaml --output output/routing`, then \
`tools/analyze_queries.py --routing --config-file qr_detr/qr_deformable_detr_digits --weights \
output/routing/EEQR/seed1/model_final.pth` |
| Fig. 2 | not possible because the paper does not say which images it shows |

## Next

| other | table |
"""


def test_rows_are_read():
    rows = rows_of(README, "README.md")
    check_rows(rows, "README.md")
    assert [row.shown for row in rows] == ["Table 1", "Fig. 2"]
    assert [len(row.commands) for row in rows] == [2, 0] and rows[0].commands[1].endswith("model_final.pth")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (SECTION, "## Tables", r"README\.md has no section '## Tables and figures of the paper'"),
        (HEADER, "| table | command |", r"README\.md has no section .* with a table"),
        ("not possible because", "left out:", r"README\.md, row 'Fig\. 2': neither a command in backticks"),
        (
            "`tools/study.py",
            "`python tools/study.py",
            r"row 'Table 1': `python tools/study\.py .*` must start",
        ),
    ],
)
def test_rows_without_an_answer_are_named(before: str, after: str, message: str):
    with pytest.raises(AssertionError, match=message):
        check_rows(rows_of(README.replace(before, after), "README.md"), "README.md")


TRAIN = "tools/lazyconfig_train_net.py --config-file"
ROUTING = "benchmarks/studies/query_routing_digits.yaml"
BESIDE = (
    f"{TRAIN} dino/dino_r50_lvis train.output_dir=output/lvis",
    f"{TRAIN} detr/detr_r50 train.output_dir=output/detr",
    f"tools/study.py {ROUTING} --output output/r",
)
"""Commands of a README whose outputs other commands read."""
BEGINNING = "model.backbone.checkpoint_path=output/none/model_final.pth"


@pytest.mark.parametrize(
    "command",
    [
        "tools/lazyconfig_train_net.py --config-file mr_detr/mr_detr_pp_dino_r50 --num-gpus 8 train.output_dir=o/x",
        "tools/lazyconfig_train_net.py --config-file dino/dino_r50_lvis --eval-only "
        "train.init_checkpoint=output/lvis/model_final.pth",
        "tools/analyze_queries.py --routing --study benchmarks/studies/query_routing_digits.yaml --weights output/r",
        "tools/benchmark_model.py --config-file detr/detr_r50 --config-file detr/detr_r18 --size 640 640",
        "tools/evaluate_results.py --results output/detr/inference/coco_instances_results.json --dataset coco_2017_val",
        "benchmarks/training_step.py --queries 300",
    ],
)
def test_tiny_instances(workspace: Workspace, command: str):
    """Kinds of commands that few READMEs have, if any."""
    workspace.run(command, BESIDE)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("tools/train.py --config-file dino/dino_r50", "no tool or benchmark of the repository"),
        ("tools/lazyconfig_train_net.py --config-file dino/dino_r49", "dino_r49"),
        ("tools/lazyconfig_train_net.py --config-file dino/dino_r50 model.query_sauce=1", "unknown config key"),
        ("tools/lazyconfig_train_net.py --config-file d3etr/d3etr_detr_r50", "model.methods.N.checkpoint=FILE"),
        ("tools/study.py benchmarks/studies/gone.yaml --output output/x", "gone.yaml does not exist"),
        ("tools/study.py benchmarks/studies/query_routing_digits.yaml --output o --variants EEQR X", "no variant X"),
        ("benchmarks/training_step.py --query 300", "unrecognized arguments: --query"),
        ("tools/analyze_model.py --config-file dino/dino_r50 --flops", "unrecognized arguments: --flops"),
        (f"{TRAIN} dino/dino_r50 train.init_checkpoint=output/x/model_final.pth", "no command of the README writes"),
        (f"{TRAIN} d3etr/d3etr_detr_r50 model.methods.0.checkpoint=o/model_final.pth", "no command of the README wri"),
        (
            f"{TRAIN} dino/dino_r50 train.init_checkpoint=output/o/model_final.pth train.output_dir=output/o",
            "no command of the README writes output/o/",
        ),
        ("tools/demo.py --config-file detr/detr_r50 --weights output/y.pth --dataset coco_2017_val", "does not exist"),
        (
            "tools/demo.py --config-file dino/dino_r50 --weights output/detr/model_final.pth --dataset coco_2017_val",
            "is from another model",
        ),
        ("tools/plot_metrics.py output/x --output output/x.png", "no command of the README has the output output/x"),
    ],
)
def test_stale_commands_are_named(workspace: Workspace, command: str, message: str):
    row = Row("README.md", "Table 1", f"`{command}`")
    with pytest.raises(AssertionError) as error:
        check_command(workspace, row, command, BESIDE)
    assert f"README.md, row 'Table 1': `{command}` does not work" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "prepared", "message"),
    [
        ("model.decoder.hads=1", "", r"unknown config key 'model\.decoder\.hads'"),
        (BEGINNING, "", "no command of the README writes output/none/"),
        (BEGINNING, "model.decoder.hads=1", r"unknown config key 'model\.decoder\.hads'"),
    ],
)
def test_a_study_with_a_stale_training_is_named(
    workspace: Workspace, tmp_path: Path, overrides: str, prepared: str, message: str
):
    """Also if it is not the one that is trained."""
    file = tmp_path / "study.yaml"
    prepare = f"prepare: [{{output: output/none, config: dino/dino_digits, overrides: [{prepared}]}}]\n" * bool(
        prepared
    )
    file.write_text(
        f"title: t\ndescription: d\nseeds: [1]\nconfig: dino/dino_digits\n{prepare}"
        f"variants: {{a: {{overrides: [{overrides}]}}, b: {{}}}}\n"
    )
    with pytest.raises(Stale, match=message):
        workspace.run(f"tools/study.py {file} --output output/stale")
