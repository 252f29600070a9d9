#!/usr/bin/env python
"""Average the weights of several checkpoints of a run: checkpoints in, one file for train.init_checkpoint out."""

from detrx.cli.average_checkpoints import main

if __name__ == "__main__":
    main()
