"""What must import where optional packages are missing, and what must not import what."""

import os
import subprocess
import sys


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


def test_importing_a_part_loads_no_more_than_it_needs():
    """Only what is asked for is loaded: tools that read weights need neither datasets nor models."""
    code = """
import sys
import detrx
print("after detrx:", {"torch", "numpy"} & set(sys.modules))
import detrx.checkpoint
print("after detrx.checkpoint:", {"detrx.data", "detrx.modeling", "detrx.ops", "scipy", "PIL"} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "after detrx: set()\nafter detrx.checkpoint: set()\n"
