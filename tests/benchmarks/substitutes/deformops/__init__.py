"""Stands for the package deformops, which needs a newer Python than the tests: its interface, as far as it is used."""
