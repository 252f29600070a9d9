"""The commands, one module each, with a `main(argv)`: `tools/demo.py` is `detrx.cli.demo`.

Without a checkout, `python -m detrx.cli demo ...` runs them. A command parses its arguments, calls the library and
prints; what others could use is in the library.
"""
