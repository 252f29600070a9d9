#!/usr/bin/env python
"""Find everything that is wrong with a dataset before a training is wasted on it."""

from detrx.cli.check_dataset import main

if __name__ == "__main__":
    main()
