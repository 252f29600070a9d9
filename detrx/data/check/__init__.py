"""Everything that is wrong with a dataset, found before a training.

`dataset` checks a registered dataset, a COCO file, or all datasets of a config; `boxes` looks at the boxes of dataset
dicts; `problems` lists the kinds of problems, each an error or a warning, and collects those that were found; `report`
prints them. The readers in `detrx.data.datasets` use the same checks: loading stops at the first error and logs the
warnings, and `tools/check_dataset.py` prints all.
"""
