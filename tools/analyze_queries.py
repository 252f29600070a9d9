#!/usr/bin/env python
"""Analyse what the queries of a trained detector do on a dataset."""

from detrx.cli.analyze_queries import main

if __name__ == "__main__":
    main()
