"""Dataset catalogs, COCO files as dataset dicts, samplers and loaders."""

from detrx.d2 import USE_DETECTRON2

if USE_DETECTRON2:
    from detectron2.data import (
        DatasetCatalog,
        DatasetFromList,
        MapDataset,
        Metadata,
        MetadataCatalog,
        build_detection_test_loader,
        build_detection_train_loader,
        get_detection_dataset_dicts,
    )
    from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
    from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
    from detectron2.data.datasets import load_coco_json, register_coco_instances
    from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
else:
    from detrx.d2.embedded.data_catalog import DatasetCatalog, Metadata, MetadataCatalog
    from detrx.d2.embedded.data_coco import load_coco_json, register_coco_instances
    from detrx.d2.embedded.data_datasets import (
        AspectRatioGroupedDataset,
        DatasetFromList,
        MapDataset,
        ToIterableDataset,
    )
    from detrx.d2.embedded.data_loader import (
        build_detection_test_loader,
        build_detection_train_loader,
        get_detection_dataset_dicts,
        trivial_batch_collator,
        worker_init_reset_seed,
    )
    from detrx.d2.embedded.data_samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler

__all__ = [
    "AspectRatioGroupedDataset",
    "DatasetCatalog",
    "DatasetFromList",
    "InferenceSampler",
    "MapDataset",
    "Metadata",
    "MetadataCatalog",
    "RepeatFactorTrainingSampler",
    "ToIterableDataset",
    "TrainingSampler",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "get_detection_dataset_dicts",
    "load_coco_json",
    "register_coco_instances",
    "trivial_batch_collator",
    "worker_init_reset_seed",
]
