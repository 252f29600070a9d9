#!/usr/bin/env python3
"""CPU time per iteration of `tools/lazyconfig_train_net.py`, of the process and the workers of its data loader.

With --baseline, another checkout of this repository trains the same config in turns with this one, so that both see the
same machine. CPU time counts what a training costs on a machine that it shares; each has one thread.

    python benchmarks/cpu_training.py deformable_detr/deformable_detr_digits --baseline ../detrx-before
"""

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import machine, print_table, write_json

ROOT = Path(__file__).resolve().parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(group: int) -> float:
    """User and system time of the processes of a group that are running (Linux only)."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def last_iteration(metrics: Path) -> int:
    """The last iteration that a training has logged, -1 before."""
    text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
    lines = text.rpartition("\n")[0].splitlines()  # without one that is being written
    return json.loads(lines[-1])["iteration"] if lines else -1


def measure(root: Path, config: str, overrides: list[str], warm_up: int, iterations: int) -> float:
    """CPU milliseconds per iteration of a training by the checkout in `root`."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["train.device=cpu", f"train.output_dir={folder}/out", f"train.log_period={warm_up}"]
        options += ["train.max_iter=1000000", "train.eval_period=0", "train.checkpointer.period=1000000", *overrides]
        command = [sys.executable, str(root / "tools/lazyconfig_train_net.py"), "--config-file", config, *options]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        with open(f"{folder}/output.txt", "w+", encoding="utf-8") as output:
            training = subprocess.Popen(
                command, cwd=root, env=environment, stdout=output, stderr=output, start_new_session=True
            )
            try:
                metrics, start, begin = Path(folder, "out/metrics.json"), -1, 0.0
                while (now := last_iteration(metrics)) < start + iterations or start < 0:
                    if start < 0 <= now:
                        start, begin = now, cpu_seconds(training.pid)
                    if training.poll() is not None:
                        output.seek(0)
                        raise SystemExit(f"the training by {root} has ended:\n{output.read()[-3000:]}")
                    time.sleep(0.01)
                return 1e3 * (cpu_seconds(training.pid) - begin) / (now - start)
            finally:
                if training.poll() is None:
                    os.killpg(training.pid, signal.SIGKILL)
                training.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", help="names of the model zoo")
    parser.add_argument("--baseline", type=Path, help="folder of another checkout, with its extension built")
    parser.add_argument("--warm-up", type=int, default=20, help="iterations before the measurement (default: 20)")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of a measurement (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per median (default: 3)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the configs")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the training as well
    roots = {"this checkout": ROOT} | ({"baseline": args.baseline.resolve()} if args.baseline else {})

    rows: list[dict[str, object]] = []
    for config in args.configs:
        times: dict[str, list[float]] = {name: [] for name in roots}
        for _ in range(args.rounds):
            for name, root in roots.items():
                times[name].append(measure(root, config, args.set, args.warm_up, args.iterations))
        middle = {name: statistics.median(values) for name, values in times.items()}
        row: dict[str, object] = {"config": config} | {f"{name}, ms": value for name, value in middle.items()}
        if args.baseline:
            row["times faster"] = middle["baseline"] / middle["this checkout"]
        rows.append(row | {"all": times})
    print_table([{key: value for key, value in row.items() if key != "all"} for row in rows])
    command = shlex.join(["benchmarks/cpu_training.py", *sys.argv[1:]])
    print("written:", write_json("cpu_training", {"machine": machine("cpu"), "command": command, "rows": rows}))


if __name__ == "__main__":
    main()
