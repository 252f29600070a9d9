import subprocess
import sys


def test_the_model_zoo_is_written_from_the_records(request):
    root = request.config.rootpath
    result = subprocess.run(
        [sys.executable, "tools/make_model_zoo.py", "--check"], cwd=root, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "| DINO |" in (root / "MODEL_ZOO.md").read_text()
