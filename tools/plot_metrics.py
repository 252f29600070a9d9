#!/usr/bin/env python
"""Draw the training curves of one or several runs: metrics.json in, PNG out."""

from detrx.cli.plot_metrics import main

if __name__ == "__main__":
    main()
