#!/usr/bin/env python
"""Draw the augmented images and boxes that a model receives, as a contact sheet."""

from detrx.cli.visualize_data import main

if __name__ == "__main__":
    main()
