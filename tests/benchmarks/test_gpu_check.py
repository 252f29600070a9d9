"""The check of the GPU: limits of time, crashes, what it makes of the tools' output, its bars. No GPU, and no stage."""

import json
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
import torch

HANG, CRASH, FINE = "speed", "smoke", "training"
FAKE = """
    import json, os, pathlib, signal, subprocess, sys, time
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    stage, out = arguments["--stage-process"], pathlib.Path(arguments["--out"])
    report = {"stage": stage, "status": "running", "facts": {}, "failures": [], "notes": []}
    path = out / f"{stage}.json"
    path.write_text(json.dumps({**report, "tables": {"rows": [{"value": 1}]}}))
    if stage == "smoke":
        print("the last words of", stage, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if stage == "speed":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        (out / "child").write_text(str(child.pid))
        time.sleep(600)
    path.write_text(json.dumps({**report, "status": "ok", "tables": {}}))
"""


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Runs `gpu_check.py` with a script in the place of the stages; returns exit code and reports."""
    from gpu import main

    script = tmp_path / "stage.py"
    script.write_text(textwrap.dedent(FAKE))
    monkeypatch.setattr(main, "SCRIPT", script)
    monkeypatch.setattr(main, "GRACE", 0.5)

    def run(*arguments: str) -> tuple[int, dict]:
        out = tmp_path / "out"
        code = main.main([*arguments, "--device", "cpu", "--out", str(out)])
        return code, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}

    return run


def is_alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.is_file() and state.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"


def test_a_crash_takes_nothing_along(check, capsys):
    code, reports = check("--stages", CRASH, FINE, "--budget", "100")
    assert code == 1 and reports[FINE]["status"] == "ok"
    assert reports[CRASH]["status"] == "crashed" and reports[CRASH]["failures"] == ["the process ended with -11"]
    assert reports[CRASH]["tables"] == {"rows": [{"value": 1}]}  # written before
    assert "the last words of smoke" in capsys.readouterr().out


def test_a_stage_that_hangs_is_ended_with_its_children(check, tmp_path, monkeypatch):
    from gpu import main, stages

    hanging = stages.Stage(HANG, 1, "gpu.speed", "", least=0.5, most=1.5)
    monkeypatch.setattr(main, "STAGES", (hanging, stages.named(FINE)))
    start = time.monotonic()
    code, reports = check("--budget", "100")
    assert code == 1 and time.monotonic() - start < 30
    assert reports[HANG]["status"] == "out of time" and reports[HANG]["tables"] and reports[FINE]["status"] == "ok"
    assert not is_alive(int((tmp_path / "out" / "child").read_text()))


def test_without_time_a_stage_is_skipped(check, capsys):
    code, reports = check("--stages", FINE, "--budget", "4")
    assert code == 1 and reports[FINE]["status"] == "skipped"
    assert "skipped, it needs 30 s and 0 s are left" in capsys.readouterr().out


def test_summary_only(check, capsys):
    check("--stages", FINE, "--budget", "100")
    capsys.readouterr()
    code, _ = check("--summary")
    assert code == 0 and "training" in capsys.readouterr().out


def test_bad_arguments(capsys):
    from gpu.main import main

    for arguments, message in (
        (["--budget", "0"], "--budget 0: expected a positive number"),
        (["--stages", "nothing"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def test_calls_without_their_stages(tmp_path):
    from gpu.main import main

    with pytest.raises(SystemExit, match="--call 2 has none of the stages smoke"):
        main(["--call", "2", "--stages", "smoke", "--out", str(tmp_path)])


def test_time_is_kept_for_later_stages():
    from gpu.stages import Stage, allotted, groups

    first = Stage("first", 1, "", "", least=10, most=60)
    beside = Stage("beside", 1, "", "", least=20, most=90, beside=True)
    last = Stage("last", 1, "", "", least=30, most=1000)
    assert groups([first, beside, last]) == [[first, beside], [last]]
    assert groups([beside, last]) == [[beside], [last]]
    assert allotted(100, [first, beside], [[last]]) == {"first": 60, "beside": 70}
    assert allotted(35, [first, beside], [[last]]) == {"first": 35, "beside": 35}  # the first come first
    assert allotted(15, [first, beside], [[last]]) == {"first": 15, "beside": 0}
    assert allotted(300, [last], []) == {"last": 300}


def test_calls_fit_into_five_minutes():
    from gpu.main import EPILOGUE, GRACE
    from gpu.stages import STAGES, groups

    for call in (1, 2):
        stages = [stage for stage in STAGES if stage.call == call]
        least = sum(max(stage.least for stage in group) for group in groups(stages))
        assert least < 285 - EPILOGUE - GRACE
        assert len(stages) + 2 <= 8  # files that come back, with the log and the merged report


@pytest.fixture
def context(tmp_path):
    from gpu.context import Context, Report

    return Context("cuda", True, time.monotonic() + 60, tmp_path, Report(tmp_path / "report.json", "stage"))


def test_items_stop_in_time(context):
    context.deadline = time.monotonic() + 1.25
    seen = []
    for item in context.in_time("abc", "letters"):
        seen.append(item)
        time.sleep(0.3)
    assert seen == ["a"]
    report = json.loads(context.report.path.read_text())
    assert report["notes"] == ["out of time: 2 of 3 letters are missing"]


MEMCHECK = """launch: first
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at detrx::forward_kernel+0x70
=========     by thread (64,0,0) in block (2,0,0)
=========     Host Frame: main [0x1]
========= ERROR SUMMARY: 1 error
"""
INITCHECK = """launch: first
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<4>(int)+0x10 in Loops.cuh:69
=========     by thread (1,0,0) in block (0,0,0)
=========
========= Uninitialized __global__ memory read of size 8 bytes
=========     at void detrx::(anonymous namespace)::gather_kernel<float, float>(long)+0x20 in deterministic.cu:84
=========     by thread (2,0,0) in block (0,0,0)
========= ERROR SUMMARY: 2 errors
"""
SANITIZER = """#!/bin/sh
[ "$1" = --help ] && {{ echo "  --kernel-name-exclude arg"; echo "  --kernel-name arg"; exit; }}
echo "$@" >> {log}
case "$2" in
  memcheck) echo "{memcheck}"; exit 9 ;;
  racecheck) echo "launch: first"; echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)" ;;
  synccheck) echo "cannot attach"; exit 1 ;;
  initcheck) echo "{initcheck}" ;;
esac
"""


def test_findings_of_compute_sanitizer(context, tmp_path, monkeypatch):
    from gpu import sanitizer

    tool, log = tmp_path / "compute-sanitizer", tmp_path / "log"
    tool.write_text(SANITIZER.format(log=log, memcheck=MEMCHECK, initcheck=INITCHECK))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    sanitizer.run(context)
    rows = {row["tool"]: row["findings"] for row in context.report.content["tables"]["tools"]}
    assert rows == {"memcheck": 1, "racecheck": 0, "synccheck": None, "initcheck": 1}
    initial, memory, broken = sorted(context.report.content["failures"])
    assert memory.startswith("memcheck: 1 findings\n========= Invalid __global__ read of size 4 bytes")
    assert "by thread" in memory and "Host Frame" not in memory
    assert broken.startswith("synccheck: ended with 1 and no summary: cannot attach")
    # What other kernels write counts for initcheck, what it finds in them does not.
    assert initial.startswith("initcheck: 1 findings\n========= Uninitialized __global__ memory read of size 8 bytes")
    assert "gather_kernel" in initial and "elementwise" not in initial
    commands = log.read_text().splitlines()
    assert len(commands) == 4
    assert all(("--kernel-name kns=detrx" in each) != each.startswith("--tool initcheck") for each in commands)
    assert next(each for each in commands if "--report-api-errors no" in each).startswith("--tool memcheck")


def test_no_sanitizer(context, monkeypatch):
    from gpu import sanitizer

    monkeypatch.setattr(sanitizer, "find_sanitizer", lambda: None)
    sanitizer.run(context)
    assert "compute-sanitizer was not found" in context.report.content["notes"][0]


def test_failing_tests_are_named(context, tmp_path, monkeypatch):
    from gpu import operator_tests

    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "conftest.py").write_text("import pytest\nMARKS = pytest.mark.gpu\n")
    (folder / "test_none.py").write_text("def test_nothing(): pass\n")
    (folder / "test_gpu.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: needs a GPU\n")
    monkeypatch.setattr(operator_tests, "ROOT", tmp_path)
    context.tiny = False
    operator_tests.run(context)
    (row,) = context.report.content["tables"]["files"]
    assert (row["file"], row["passed"], row["failed"], row["skipped"]) == ("tests/test_gpu.py", 1, 1, 0)
    (message,) = context.report.content["failures"]
    assert message.startswith("tests/test_gpu.py::test_bad: ") and "assert 1 == 2" in message


def test_tests_that_all_skip_are_a_failure(context, monkeypatch, tmp_path):
    from gpu import operator_tests

    monkeypatch.setattr(
        operator_tests, "run_file", lambda *_: ({"file": "x", "passed": 0, "failed": 0, "skipped": 3}, [])
    )
    operator_tests.run(context)
    assert context.report.content["failures"] == ["no test passed on the GPU"]


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A clock in the place of a GPU: whatever is launched takes the time it says."""
    state = {"now": 0.0, "slept": 0.0}

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            self.at = state["now"]

        def elapsed_time(self, other: "Event") -> float:
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: state.update(slept=state["slept"] + cycles))
    return state


def test_times_on_a_device_are_those_between_its_events(pretended_gpu):
    from harness import device_medians

    def takes(ms: float):
        return lambda: pretended_gpu.update(now=pretended_gpu["now"] + ms)

    times = device_medians({"short": takes(0.125), "long": takes(7.0)}, 3, "cuda")
    assert times == {"short": 0.125, "long": 7.0}
    assert pretended_gpu["slept"] > 0


def test_synchronisations_are_counted_by_place(monkeypatch):
    from gpu.training import synchronisations

    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)

    def step() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation")
        warnings.warn("something else")

    ((place, count),) = synchronisations(step, "cuda").items()
    assert count == 2 and place.startswith("tests/benchmarks/test_gpu_check.py:")
    assert modes == ["warn", "default"]


def test_bars():
    from gpu.bars import evaluate

    attention = {"shape": "encoder", "batch": 1, "dtype": "bfloat16", "form": "fused"}
    ours = {"detrx fwd ms": 1.0, "detrx fwd+bwd ms": 4.0}
    theirs = {"deformops triton fwd ms": 1.5, "deformops cuda fwd ms": 0.8, "deformops cuda fwd+bwd ms": 5.0}
    step = {"training step": "+ Mr. DETR", "times plain": 1.25, "matching %": 4.5, "synchronisations": 4}
    reports = {
        "smoke": {"tables": {"launches": [{"of tolerance": 0.5}, {"of tolerance": 1.5}, {}]}},
        "tests": {"tables": {"files": [{"passed": 5, "failed": 0}]}},
        "sanitizer": {"tables": {"tools": [{"tool": "memcheck", "findings": 0, "launches": 3}]}},
        "speed": {
            "tables": {
                "attention": [
                    attention | ours | {"published fwd ms": 3.5, "published fwd+bwd ms": 8.0},
                    attention | ours | {"shape": "decoder300", "published fwd ms": 1.0},
                    attention | ours | {"dtype": "float32", "published fwd ms": 2.5, "published fwd+bwd ms": 8.0},
                ]
            }
        },
        "deformops": {"tables": {"attention": [attention | ours | theirs]}},
        "layers": {"tables": {"decoder": [{"dtype": "bfloat16", "times faster": 1.2}]}},
        "training": {"tables": {"steps": [step]}},
    }
    found = {bar.where: (bar.value, bar.met) for bar in evaluate(reports)}
    assert found == {
        "launches that differ from the CPU, of 3": (2, False),
        "GPU tests that fail, beside 5 that pass": (0, True),
        "findings of memcheck in 3 launches": (0, True),
        "times faster than published, encoder x1 bfloat16 fused fwd": (3.5, True),
        "times faster than published, encoder x1 bfloat16 fused fwd+bwd": (2.0, False),
        "times faster than published, encoder x1 float32 fused fwd": (2.5, True),
        "times faster than published, encoder x1 float32 fused fwd+bwd": (2.0, True),
        "times faster than deformops cuda, encoder x1 bfloat16 fused fwd": (0.8, False),
        "times faster than deformops cuda, encoder x1 bfloat16 fused fwd+bwd": (1.25, True),
        "times faster in one decoder pass, bfloat16": (1.2, False),
        "step of + Mr. DETR, times plain": (1.25, True),
        "step of + Mr. DETR, percent of matching": (4.5, False),
        "step of + Mr. DETR, waits for the device": (4, True),
    }
    missed = [str(bar) for bar in evaluate(reports) if not bar.met]
    assert "MISSED times faster than deformops cuda, encoder x1 bfloat16 fused fwd: 0.8, bar >= 1, off by 20%" in missed


def test_bars_of_nothing():
    from gpu.bars import evaluate

    assert evaluate({}) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_kernel_is_noticed(dtype):
    from gpu.launches import Launch, attention

    right = attention("boxes", dtype, 16)

    def wrong(device: str, exact: bool) -> list[torch.Tensor]:
        results = right.run(device, exact)
        return results if exact else [results[0], 1.5 * results[1], *results[2:]]

    assert right.difference("cpu") <= 1
    assert Launch("wrong", "", dtype, wrong).difference("cpu") > 1


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_all_sizes_of_the_tables(context, monkeypatch):
    """The stages "tables" and "deformops_tables": what "speed" does, with other options."""
    from gpu import speed

    monkeypatch.syspath_prepend(Path(__file__).with_name("substitutes"))
    context.device = "cpu"
    speed.run(context, full=True)
    speed.run(context, rivals="deformops", full=True)
    tables = context.report.content["tables"]
    assert len(tables["attention"]) == 16 and len(tables["deterministic"]) == 2
    assert len(speed.cases(full=True, tiny=False)) == 54 and len(speed.cases(full=False, tiny=False)) == 12
