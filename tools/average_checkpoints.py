#!/usr/bin/env python
"""Average the weights of several checkpoints of a run into one file for train.init_checkpoint."""

from detrx.cli.average_checkpoints import main

if __name__ == "__main__":
    main()
