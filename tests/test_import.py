"""What must import where optional packages are missing, and what must not import what."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import detrx


def test_package_imports_without_torchvision_and_timm():
    """For some builds of torch there is no torchvision, and timm requires it."""
    code = """
import sys
sys.modules["torchvision"] = sys.modules["timm"] = None  # importing them raises ImportError
import detrx.analysis, detrx.checkpoint, detrx.data, detrx.engine
import detrx.layers, detrx.model_zoo, detrx.modeling, detrx.ops
detrx.model_zoo.get_config("deformable_detr/deformable_detr_digits.py")
try:
    detrx.modeling.TimmBackbone("resnet18")
except ImportError as error:
    print(error)
"""
    environment = {**os.environ, "DETRX_D2": "embedded"}  # Detectron2 itself needs torchvision
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "pip install timm torchvision" in result.stdout


@pytest.mark.parametrize(
    ("package", "below"),
    [
        ("coco", {"atomic", "errors", "layers"}),
        ("d2", {"coco", "errors"}),
        ("data", {"atomic", "coco", "d2", "errors"}),
        ("evaluation", {"coco", "d2", "errors"}),
    ],
)
def test_packages_import_only_what_is_below_them(package, below):
    imported = set()
    for file in (Path(detrx.__file__).parent / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported |= {name.split(".")[1] for name in names if name.startswith("detrx.")}
    assert imported - {package} == below
