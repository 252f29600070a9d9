"""Everything that is wrong with a dataset, found before a training.

`dataset` checks a COCO file, a registered dataset, or all datasets of a config. `entries`, `boxes` and `image_files`
look at a part each, `statistics` counts, and `report` prints what was found. `detrx.coco.problems` lists the kinds of
problems, each an error or a warning. Loading a dataset stops at the first error and logs the warnings;
`tools/check_dataset.py` prints all.
"""
