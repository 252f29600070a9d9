"""COCO's formats and metrics, which need no Detectron2.

`annotations` reads annotation files and finds everything that is wrong with them, of the kinds that `problems` lists;
`results` reads and writes detections; `metrics` scores them; `classes` has the names of COCO's 80 classes.
"""
