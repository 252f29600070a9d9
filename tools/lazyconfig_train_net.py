#!/usr/bin/env python
"""Train or evaluate the model of a config file."""

import sys

from detrx.cli.lazyconfig_train_net import main

if __name__ == "__main__":
    sys.exit(main())
