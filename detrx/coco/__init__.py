"""COCO's formats and metrics, which need no Detectron2.

`annotations` takes annotation files apart and finds everything that is wrong with them, of the kinds that `problems`
lists; `files` reads files of annotations and of detections; `results` makes the latter of a model's outputs; `metrics`
scores them; `classes` has the names of COCO's 80 classes.
"""
