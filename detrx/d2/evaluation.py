"""Running a model over a dataset, and the interface of what scores its outputs."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.evaluation import (
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

__all__ = [
    "DatasetEvaluator",
    "inference_context",
    "inference_on_dataset",
    "print_csv_format",
]
