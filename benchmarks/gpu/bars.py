"""What the figures have to reach, and by how much they do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Reports = Mapping[str, Mapping[str, Any]]
"""Contents of the stages' reports, by name of the stage."""
AT_LEAST, AT_MOST = ">=", "<="
SPEEDUP = {"float32": 2.0, "bfloat16": 3.0}
"""Times faster than the published algorithm at the encoder's shape."""
DECODER_SPEEDUP = 1.3
"""Times faster that one pass of Mr. DETR's decoder is than three."""
STEP_RATIO = {"+ Mr. DETR": 1.3}
"""A training step as a multiple of the plain detector's."""
MATCHING_PERCENT = 3.0
STEP_WAITS, INFERENCE_WAITS = 4, 2
"""How often the host may wait for the device, in a training step and in an inference."""


@dataclass(frozen=True)
class Bar:
    """A figure `value` at `where`, which has to be at least, or at most, `limit`."""

    where: str
    value: float
    relation: str
    limit: float

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.relation == AT_LEAST else self.value <= self.limit

    def __str__(self) -> str:
        verdict = "met   " if self.met else "MISSED"
        text = f"{verdict} {self.where}: {self.value:.4g}, bar {self.relation} {self.limit:.4g}"
        if self.met or not self.limit:
            return text
        return f"{text}, off by {abs(self.value - self.limit) / self.limit:.0%}"


def evaluate(reports: Reports) -> list[Bar]:
    """All bars whose figures were measured."""
    return [*_correctness(reports), *_attention(reports), *_steps(reports)]


def _table(reports: Reports, stage: str, name: str) -> list[dict[str, Any]]:
    return reports.get(stage, {}).get("tables", {}).get(name, [])


def _correctness(reports: Reports) -> Iterator[Bar]:
    if launches := _table(reports, "smoke", "launches"):
        wrong = sum(row.get("of tolerance", 2) > 1 for row in launches)
        yield Bar(f"launches that differ from the CPU, of {len(launches)}", wrong, AT_MOST, 0)
    if files := _table(reports, "tests", "files"):
        failed = sum(row["failed"] for row in files)
        passed = sum(row["passed"] for row in files)
        yield Bar(f"GPU tests that fail, beside {passed} that pass", failed, AT_MOST, 0)
    for row in _table(reports, "sanitizer", "tools"):
        if isinstance(row["findings"], int):
            yield Bar(f"findings of {row['tool']} in {row['launches']} launches", row["findings"], AT_MOST, 0)


def _attention(reports: Reports) -> Iterator[Bar]:
    for stage in ("speed", "tables"):
        for row in _table(reports, stage, "attention"):
            limit = SPEEDUP.get(row["dtype"])
            if row["shape"] != "encoder" or limit is None:
                continue
            for label in ("fwd", "fwd+bwd"):
                if (theirs := row.get(f"published {label} ms")) is not None:
                    where = f"times faster than published, {_where(row)} {label}"
                    yield Bar(where, theirs / row[f"detrx {label} ms"], AT_LEAST, limit)
    for stage in ("deformops", "deformops_tables"):
        for row in _table(reports, stage, "attention"):
            for label in ("fwd", "fwd+bwd"):
                theirs = {
                    name: value
                    for name, value in row.items()
                    if name.startswith("deformops") and name.endswith(f" {label} ms")
                }
                if theirs:
                    best = min(theirs, key=theirs.__getitem__)
                    where = f"times faster than {best.removesuffix(f' {label} ms')}, {_where(row)} {label}"
                    yield Bar(where, theirs[best] / row[f"detrx {label} ms"], AT_LEAST, 1.0)


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['shape']} x{row['batch']} {row['dtype']} {row['form']}"


def _steps(reports: Reports) -> Iterator[Bar]:
    for row in _table(reports, "layers", "decoder"):
        where = f"times faster in one decoder pass, {row['dtype']}"
        yield Bar(where, row["times faster"], AT_LEAST, DECODER_SPEEDUP)
    for row in _table(reports, "training", "steps"):
        name = row["training step"]
        if name in STEP_RATIO:
            yield Bar(f"step of {name}, times plain", row["times plain"], AT_MOST, STEP_RATIO[name])
        yield Bar(f"step of {name}, percent of matching", row["matching %"], AT_MOST, MATCHING_PERCENT)
        yield Bar(f"step of {name}, waits for the device", row["synchronisations"], AT_MOST, STEP_WAITS)
    for row in _table(reports, "inference", "waits"):
        yield Bar(
            f"inference of {row['model']}, waits for the device", row["synchronisations"], AT_MOST, INFERENCE_WAITS
        )
