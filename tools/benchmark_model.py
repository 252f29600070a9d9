#!/usr/bin/env python
"""Compare the inference speed of detectors."""

from detrx.cli.benchmark_model import main

if __name__ == "__main__":
    main()
