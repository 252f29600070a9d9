#!/usr/bin/env python
"""Prepare a folder for the check on a GPU machine that can neither compile nor download; see docs/kernels.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from gpu.pack import main

if __name__ == "__main__":
    main()
