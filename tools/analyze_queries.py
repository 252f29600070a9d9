#!/usr/bin/env python
"""What the queries of a trained detector do on a dataset: pictures and figures."""

from detrx.cli.analyze_queries import main

if __name__ == "__main__":
    main()
