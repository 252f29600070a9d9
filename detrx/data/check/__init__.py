"""Everything that is wrong with a dataset, found before a training.

`dataset` checks a registered dataset, a COCO file, or all datasets of a config; `boxes` looks at the boxes of dataset
dicts; `report` prints what was found. `detrx.coco.problems` lists the kinds of problems, each an error or a warning.
The readers in `detrx.data.datasets` use the same checks: loading stops at the first error and logs the warnings, and
`tools/check_dataset.py` prints all.
"""
