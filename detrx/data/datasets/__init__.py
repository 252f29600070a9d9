"""Datasets: the builtin ones and their names, the readers of their files, and those that users name by a file."""
