#!/usr/bin/env python
"""Score a saved file of detections, without the model."""

from detrx.cli.evaluate_results import main

if __name__ == "__main__":
    main()
