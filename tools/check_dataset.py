#!/usr/bin/env python
"""Check a dataset before training on it."""

from detrx.cli.check_dataset import main

if __name__ == "__main__":
    main()
