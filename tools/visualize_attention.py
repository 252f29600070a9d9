#!/usr/bin/env python
"""Draw what the queries of trained detectors attend to."""

from detrx.cli.visualize_attention import main

if __name__ == "__main__":
    main()
