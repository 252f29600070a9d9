"""The choice of the provider; each case is a fresh interpreter, because the choice is made at import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BLOCK = "import sys; sys.modules['detectron2'] = None; "  # makes `import detectron2` fail as if it was not installed
PRINT = "import detrx.d2 as d2; print(d2.provider(), d2.USE_DETECTRON2)"


def run(code: str, value: str | None, path: Path | None = None) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "DETRX_D2"}
    env["PYTHONPATH"] = os.pathsep.join(str(p) for p in (path, ROOT) if p is not None)
    if value is not None:
        env["DETRX_D2"] = value
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_embedded_can_be_forced_and_then_no_module_loads_detectron2():
    modules = ["config", "structures", "data", "evaluation", "modeling"]
    code = "; ".join(
        [f"import detrx.d2.{m}" for m in modules] + [PRINT, "import sys; print('detectron2' in sys.modules)"]
    )
    done = run(code, "embedded")
    assert done.stdout.split() == ["embedded", "False", "False"], done.stderr


@pytest.mark.parametrize("value", [None, "", "auto"])
def test_auto_without_detectron2_is_embedded_without_a_warning(value):
    done = run(BLOCK + PRINT, value)
    assert done.stdout.split() == ["embedded", "False"] and done.stderr == ""


def test_unknown_value_names_the_choices():
    done = run(PRINT, "detectron")
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.endswith("InvalidInputError: DETRX_D2='detectron' is not one of auto, detectron2, embedded")


def test_detectron2_asked_for_but_missing():
    done = run(BLOCK + PRINT, "detectron2")
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert "MissingImportError: DETRX_D2=detectron2" in message and "not installed" in message


def test_a_clone_of_the_repository_in_the_path_is_not_detectron2(tmp_path):
    (tmp_path / "detectron2" / "detectron2").mkdir(parents=True)
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; " + PRINT
    done = run(code, "auto", tmp_path)
    assert done.stdout.split() == ["embedded", "False"]
    assert "directory without an installed package" in done.stderr


def test_a_broken_detectron2_is_reported_and_not_used(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("raise OSError('undefined symbol: _ZN2at')")
    done = run(PRINT, "auto", tmp_path)
    assert done.stdout.split() == ["embedded", "False"]
    assert "undefined symbol" in done.stderr
    done = run(PRINT, "detectron2", tmp_path)
    assert done.returncode != 0 and "undefined symbol" in done.stderr.strip().splitlines()[-1]


def test_detectron2_is_used_where_it_is_installed():
    pytest.importorskip("detectron2")
    for value in (None, "auto", "detectron2"):
        assert run(PRINT, value).stdout.split() == ["detectron2", "True"]
