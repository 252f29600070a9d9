#!/usr/bin/env python
"""Write a report of a training: one HTML file that needs nothing else."""

from detrx.cli.report import main

if __name__ == "__main__":
    main()
