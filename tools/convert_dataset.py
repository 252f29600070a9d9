#!/usr/bin/env python
"""Convert YOLO and Pascal VOC datasets to COCO annotation files."""

from detrx.cli.convert_dataset import main

if __name__ == "__main__":
    main()
