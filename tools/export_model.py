#!/usr/bin/env python
"""Export a trained detector as a torch.export program or an ONNX file."""

from detrx.cli.export_model import main

if __name__ == "__main__":
    main()
