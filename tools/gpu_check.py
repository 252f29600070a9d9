#!/usr/bin/env python
"""Test and measure the kernels and detectors on a GPU; see docs/kernels.md."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from gpu.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
