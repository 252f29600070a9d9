#!/usr/bin/env python
"""Detect objects in images and videos, and write drawn images and COCO-format JSON."""

from detrx.cli.demo import main

if __name__ == "__main__":
    main()
