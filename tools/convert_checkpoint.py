#!/usr/bin/env python
"""Convert published weights to ours: a checkpoint of another code base in, a file for train.init_checkpoint out."""

from detrx.cli.convert_checkpoint import main

if __name__ == "__main__":
    main()
