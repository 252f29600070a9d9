#!/usr/bin/env python
"""Write a self-contained HTML report of a training."""

from detrx.cli.report import main

if __name__ == "__main__":
    main()
