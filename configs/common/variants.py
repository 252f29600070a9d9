"""A config with another backbone, dataset, levels, queries or epochs: what a line of a `variants.yaml` does."""

from detrx.errors import InvalidInputError

from .datasets import DATASETS, dataset_of, on_dataset
from .models.backbones import CHANNELS, convnext_tiny, resnet18, resnet50, resnet101, swin_large, swin_tiny
from .schedule import DROP, multi_step

BACKBONES = {
    "r18": resnet18,
    "r50": resnet50,
    "r101": resnet101,
    "swin_t": swin_tiny,
    "swin_l": swin_large,
    "convnext_t": convnext_tiny,
}
LEVELS = {4: ["res3", "res4", "res5"], 5: ["res2", "res3", "res4", "res5"]}  # the last level is made from res5
STRIDES = {"c5": 32, "dc5": 16}


def variant(cfg, *, backbone=None, stage=None, levels=None, queries=None, epochs=None, dataset=None):
    """Change a config in place; what is None stays.

    Args:
        cfg: a whole config, as loaded, with a backbone of `models/backbones.py`.
        backbone: one of `BACKBONES`; it gives the same maps as the one before.
        stage: "c5", a single level at stride 32, or "dc5", dilated, at stride 16.
        levels: 4, strides 8 to 64, or 5, strides 4 to 64.
        queries: their number.
        epochs: 12, 24, 36, 48, 50 or 64, of the dataset, with the learning rate's drop that belongs to them.
        dataset: one of `DATASETS`, for as many epochs as it has there if `epochs` is None.

    Raises:
        InvalidInputError: there is no such backbone, stage, number of levels or epochs, or no such dataset; `epochs` of
            a dataset that is not among them.
    """
    model = cfg.model
    features = model.backbone.out_features
    if backbone is not None:
        model.backbone = _one_of("backbone", backbone, BACKBONES)
    if stage is not None:
        features = ["res5"]
        model.tokenizer.num_levels = 1
        if _one_of("stage", stage, STRIDES) == 16:
            model.backbone.model_args = {"output_stride": 16}
    if levels is not None:
        features = _one_of("levels", levels, LEVELS)
        model.tokenizer.num_levels = levels
    if (backbone, stage, levels) != (None, None, None):
        channels = _one_of("model.backbone.name", model.backbone.name, CHANNELS)
        model.backbone.out_features = features
        model.neck.in_features = features
        model.neck.in_channels = [channels[name] for name in features]
    if queries is not None:
        model.query_source.num_queries = queries
    if dataset is not None:
        _one_of("dataset", dataset, DATASETS)
        on_dataset(cfg, dataset)
    if dataset is not None or epochs is not None:
        counted = dataset_of(cfg)
        epochs = counted["epochs"] if epochs is None else epochs
        cfg.lr_multiplier = multi_step(epochs, _one_of("epochs", epochs, DROP), epoch=counted["epoch"])
        cfg.train.max_iter = epochs * counted["epoch"]


def _one_of(name, value, choices):
    if value not in choices:
        raise InvalidInputError(f"{name} is {value!r}, expected {', '.join(map(str, choices))}")
    return choices[value]
