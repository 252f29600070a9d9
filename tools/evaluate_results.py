#!/usr/bin/env python
"""Score a saved file of detections, without a model: detections and annotations in, tables of AP and AR out."""

from detrx.cli.evaluate_results import main

if __name__ == "__main__":
    main()
