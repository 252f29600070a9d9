"""Runs of the training script on the toy config, each in a process that can be killed."""

import json
import multiprocessing
import os
import socket
import sys
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for toy_detector and toy_runner
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["toy_runner"])


class Run(NamedTuple):
    code: int  # negative: the signal that killed it
    output: str


class Script:
    """`tools/lazyconfig_train_net.py`, run with the toy config and ``folder`` for its output."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, *arguments: str, processes: int = 1, **environment: object) -> Run:
        """Run it until it ends. The last of several processes gets the environment."""
        common = [{}] * (processes - 1) + [environment]
        if processes > 1:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                port = sock.getsockname()[1]
            job = {
                "WORLD_SIZE": processes,
                "LOCAL_WORLD_SIZE": processes,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            common = [{**variables, **job, "RANK": r, "LOCAL_RANK": r} for r, variables in enumerate(common)]
        started = [self.start(*arguments, rank=rank, **variables) for rank, variables in enumerate(common)]
        for process in started:
            process.join()
        output = "".join(self.console(rank).read_text() for rank in range(processes))
        return Run(max((process.exitcode for process in started), key=abs), output)

    def start(self, *arguments: str, rank: int = 0, new_group: bool = False, **environment: object) -> BaseProcess:
        """Start one process."""
        import toy_runner  # here, because the tests of other folders need not import it

        flags = [argument for argument in arguments if argument.startswith("--")]
        options = [argument for argument in arguments if not argument.startswith("--")]
        command = [*flags, "--config-file", toy_runner.CONFIG, f"train.output_dir={self.folder}", *options]
        variables = {name: str(value) for name, value in environment.items()}
        self.console(rank).unlink(missing_ok=True)
        process = CONTEXT.Process(
            target=toy_runner.run, args=(command, str(self.console(rank)), variables, new_group), daemon=False
        )
        process.start()
        return process

    def console(self, rank: int = 0) -> Path:
        return self.folder / f"console.{rank}"

    def metrics(self) -> dict[int, dict[str, float]]:
        """Lines of metrics.json by iteration, without times; an iteration must not have two values of one scalar."""
        lines: dict[int, dict[str, float]] = {}
        for text in (self.folder / "metrics.json").read_text().splitlines():
            line = json.loads(text)
            known = lines.setdefault(line.pop("iteration"), {})
            line = {name: value for name, value in line.items() if "time" not in name and "seconds" not in name}
            assert not known.keys() & line.keys(), "metrics.json has an iteration twice"
            known.update(line)
        return lines


@pytest.fixture(scope="session", autouse=True)
def _server() -> None:
    """Start the server of processes. It finds the modules it is to import by PYTHONPATH only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")]))
        forkserver.ensure_running()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Script:
    """A complete run."""
    script = Script(tmp_path_factory.mktemp("uninterrupted"))
    run = script("train.best_metric=toy/AP")
    assert run.code == 0, run.output
    return script
