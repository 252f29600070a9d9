#!/usr/bin/env python
"""Convert a checkpoint of another project to a file for train.init_checkpoint."""

from detrx.cli.convert_checkpoint import main

if __name__ == "__main__":
    main()
