"""The commands: one module each, with a `main(argv)`. `tools/demo.py` runs `detrx.cli.demo`.

Without a checkout, run `python -m detrx.cli demo ...`. A command only parses its arguments, calls the library and
prints; reusable code belongs in the library.
"""
