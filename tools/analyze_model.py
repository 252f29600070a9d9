#!/usr/bin/env python
"""Count the parameters and multiply-adds of a model, measure its memory and time its inference."""

from detrx.cli.analyze_model import main

if __name__ == "__main__":
    main()
