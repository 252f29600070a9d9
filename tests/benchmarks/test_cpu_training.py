import runpy
import subprocess
import sys
import time

import pytest

SPIN = """
import time
start = time.process_time()
while time.process_time() - start < 0.2:
    pass
print(flush=True)
input()
"""


@pytest.fixture
def script(request, monkeypatch):
    folder = request.config.rootpath / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    return runpy.run_path(str(folder / "cpu_training.py"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_cpu_time_is_that_of_the_group(script):
    command = [sys.executable, "-c", SPIN]
    with subprocess.Popen(command, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline()
        time.sleep(0.3)  # asleep, which costs nothing
        used = script["cpu_seconds"](child.pid)
        child.communicate(b"\n")
    assert 0.15 <= used < 0.45
    assert script["cpu_seconds"](child.pid) == 0


def test_the_last_iteration_is_read_from_the_metrics(script, tmp_path):
    path = tmp_path / "metrics.json"
    assert script["last_iteration"](path) == -1
    path.write_text('{"iteration": 19}\n{"iteration": 39}\n')
    assert script["last_iteration"](path) == 39
