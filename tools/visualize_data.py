#!/usr/bin/env python
"""Draw what a model is given: a contact sheet of augmented images with their boxes."""

from detrx.cli.visualize_data import main

if __name__ == "__main__":
    main()
