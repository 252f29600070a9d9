#!/usr/bin/env python
"""Train the variants of a study with several seeds and compare them."""

from detrx.cli.study import main

if __name__ == "__main__":
    main()
