#!/usr/bin/env python
"""Write MODEL_ZOO.md from the recorded studies in benchmarks/results/studies, and the papers' results and orderings."""

from detrx.cli.make_model_zoo import main

if __name__ == "__main__":
    main()
