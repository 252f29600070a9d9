"""The stages, most important first."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stage:
    """
    Attributes:
        call: 1 or 2: of which of the two calls it is a part.
        module: its function `run(context, **options)` is the stage.
        least: seconds without which it is not begun.
        most: seconds after which it is ended.
        beside: runs beside the stage before it; neither of them measures time.
    """

    name: str
    call: int
    module: str
    about: str
    least: float
    most: float
    options: dict[str, object] = field(default_factory=dict, hash=False)
    beside: bool = False


STAGES = (
    Stage("smoke", 1, "gpu.smoke", "what the device is; every kernel once, against the CPU", 15, 60),
    Stage("tests", 1, "gpu.operator_tests", "the GPU tests of the operators", 30, 110),
    Stage("sanitizer", 1, "gpu.sanitizer", "compute-sanitizer on small launches of all kernels", 30, 110, beside=True),
    Stage("speed", 1, "gpu.speed", "deformable attention against PyTorch and the published algorithm", 20, 70),
    Stage("deformops", 1, "gpu.speed", "deformable attention against deformops", 20, 70, {"rivals": "deformops"}),
    Stage("training", 2, "gpu.training", "training steps at 800x1333", 30, 100),
    Stage("layers", 2, "gpu.layers", "mixture of experts, query routing, one decoder pass for three routes", 20, 50),
    Stage("tables", 2, "gpu.speed", "deformable attention: all dtypes and batches", 20, 60, {"full": True}),
    Stage("inference", 2, "gpu.inference", "latency of inference, eager and compiled", 20, 100),
    Stage(
        "deformops_tables",
        2,
        "gpu.speed",
        "deformops: all dtypes and batches",
        20,
        60,
        {"rivals": "deformops", "full": True},
    ),
    Stage("studies", 2, "gpu.studies", "trainings on digits, side by side", 40, 3600),
)


def named(name: str) -> Stage:
    return next(stage for stage in STAGES if stage.name == name)


def groups(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Stages that run side by side, in order."""
    result: list[list[Stage]] = []
    for stage in stages:
        if stage.beside and result:
            result[-1].append(stage)
        else:
            result.append([stage])
    return result


def allotted(remaining: float, group: Sequence[Stage], later: Sequence[Sequence[Stage]]) -> dict[str, float]:
    """Seconds for each stage of a group: as many as it may use, as long as the later groups keep the least they need; 0
    where not even its own least remains."""
    reserved = sum(max(stage.least for stage in each) for each in later)
    result = {}
    for stage in group:
        free = remaining - reserved if remaining - reserved >= stage.least else remaining
        result[stage.name] = min(stage.most, free) if free >= stage.least else 0
    return result
