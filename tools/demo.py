#!/usr/bin/env python
"""Detect objects in images and videos: files or a registered dataset in, drawn PNGs and COCO-format JSON out."""

from detrx.cli.demo import main

if __name__ == "__main__":
    main()
