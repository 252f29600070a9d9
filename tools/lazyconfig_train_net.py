#!/usr/bin/env python
"""Train or evaluate what a config file describes."""

import sys

from detrx.cli.lazyconfig_train_net import main

if __name__ == "__main__":
    sys.exit(main())
