#!/usr/bin/env python
"""Plot the training curves of one or several runs."""

from detrx.cli.plot_metrics import main

if __name__ == "__main__":
    main()
