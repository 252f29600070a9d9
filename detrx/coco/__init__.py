"""COCO's formats and metrics, which need no Detectron2.

`annotations` is the parser of annotation files and finds everything that is wrong with them, of the kinds that
`problems` lists; `records` loads such a file by it, or raises its first error. `json_files` reads what scoring needs,
annotations and detections; `results` makes detections of a model's outputs and writes them; `metrics` scores them,
with ids of its own from `numbering`. `values` says what ids, numbers and boxes may be; `classes` has the names of
COCO's 80 classes.
"""
