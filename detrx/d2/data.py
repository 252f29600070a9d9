"""Dataset catalogs, registration of COCO files, samplers and the test loader."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.data import (
        DatasetCatalog,
        DatasetFromList,
        MapDataset,
        Metadata,
        MetadataCatalog,
        build_detection_test_loader,
        get_detection_dataset_dicts,
    )
    from detectron2.data.datasets import register_coco_instances
    from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
else:
    from detrx.d2.embedded.data_catalog import DatasetCatalog, Metadata, MetadataCatalog
    from detrx.d2.embedded.data_coco import register_coco_instances
    from detrx.d2.embedded.data_datasets import (
        DatasetFromList,
        MapDataset,
    )
    from detrx.d2.embedded.data_loader import (
        build_detection_test_loader,
        get_detection_dataset_dicts,
    )
    from detrx.d2.embedded.data_samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler

__all__ = [
    "DatasetCatalog",
    "DatasetFromList",
    "InferenceSampler",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
    "build_detection_test_loader",
    "get_detection_dataset_dicts",
    "register_coco_instances",
]
