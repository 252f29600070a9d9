"""The check of the kernels on a GPU: `tools/gpu_check.py`.

`main` runs stages, each in a process of its own, which writes what it finds as soon as it has it; `stages` lists them,
`context` is what they get, `bars` judges the figures, and `pack` prepares a folder for a machine that can neither build
nor download.
"""
