"""Running a model over a dataset and scoring its boxes with the COCO metrics."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.evaluation import (
        COCOEvaluator,
        DatasetEvaluator,
        inference_context,
        inference_on_dataset,
        print_csv_format,
    )
else:
    from detrx.d2.embedded.evaluation import (
        DatasetEvaluator,
        inference_context,
        inference_on_dataset,
        print_csv_format,
    )
    from detrx.d2.embedded.evaluation_coco import COCOEvaluator

__all__ = [
    "COCOEvaluator",
    "DatasetEvaluator",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
]
