"""The scripts in `tools/`, and `python -m detrx.cli`: one for each command."""

import argparse
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from detrx import cli
from detrx.cli._command import run_tool

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(module.name for module in pkgutil.iter_modules(cli.__path__) if not module.name.startswith("_"))
OF_BENCHMARKS = {"gpu_check", "gpu_folder"}


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_there_is_a_script_for_each_command():
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} == {*COMMANDS, *OF_BENCHMARKS}


@pytest.mark.parametrize("name", COMMANDS)
def test_scripts_are_thin(name: str):
    script = (ROOT / "tools" / f"{name}.py").read_text()
    assert f"from detrx.cli.{name} import main" in script and len(script.splitlines()) < 12


def test_help_of_a_script_and_of_a_module():
    script, module = run("tools/plot_metrics.py", "--help"), run("-m", "detrx.cli", "plot_metrics", "--help")
    assert script.returncode == module.returncode == 0
    assert script.stdout.startswith("usage: plot_metrics.py") and module.stdout.startswith("usage: detrx.cli plot_metr")
    assert module.stdout.split("]")[-1] == script.stdout.split("]")[-1]


def test_the_exit_status_is_passed_on():
    result = run("-m", "detrx.cli", "lazyconfig_train_net", "--config-file", "nothing.py")
    assert result.returncode == 2 and result.stderr.startswith("error: config file nothing.py does not exist")


@pytest.mark.parametrize("arguments", [(), ("nothing",)])
def test_an_unknown_command(arguments: tuple[str, ...]):
    result = run("-m", "detrx.cli", *arguments)
    assert result.returncode == 1 and "with one of analyze_model, " in result.stderr


def test_ctrl_c_ends_a_command_without_a_traceback():
    def interrupted(args):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as error:
        run_tool(interrupted, argparse.Namespace())
    assert error.value.code == 130


PRINTING = """
import argparse
from detrx.cli._command import run_tool
run_tool(lambda args: print("x" * {length}), argparse.Namespace())
"""


@pytest.mark.parametrize("length", [10, 100_000], ids=["within the buffer", "longer"])
def test_a_reader_that_has_ended_causes_no_traceback(length):
    process = subprocess.Popen(
        [sys.executable, "-c", PRINTING.format(length=length)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1


def test_another_broken_pipe_is_not_hidden():
    def broken(args):
        raise BrokenPipeError("of a process")

    with pytest.raises(BrokenPipeError, match="of a process"):
        run_tool(broken, argparse.Namespace())


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_the_package_lists_the_commands(option: str):
    result = run("-m", "detrx.cli", option)
    assert result.returncode == 0 and result.stdout.startswith("usage: ") and not result.stderr
    assert all(name in result.stdout for name in COMMANDS)
