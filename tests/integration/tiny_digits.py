"""The digits config on a few images and a thinner model, for tests of the whole chain in seconds."""

from detrx import model_zoo
from detrx.d2.data import DatasetCatalog, register_coco_instances
from detrx.data import datasets_root
from detrx.data.digits import DigitsSpec, prepare

if "tiny_digits_train" not in DatasetCatalog:
    _root = prepare(datasets_root() / "tiny_digits", DigitsSpec(num_train=24, num_val=8), progress=False)
    for _split in ("train", "val"):
        register_coco_instances(
            f"tiny_digits_{_split}", {}, str(_root / "annotations" / f"{_split}.json"), str(_root / _split)
        )

_cfg = model_zoo.get_config("deformable_detr/deformable_detr_digits.py")
model, dataloader, optimizer, lr_multiplier, train = (
    _cfg[key] for key in ("model", "dataloader", "optimizer", "lr_multiplier", "train")
)
model.backbone.model_args = {"layers": [1, 1, 1, 1], "channels": [16, 24, 32, 48], "stem_width": 8, "stem_type": "deep"}
model.neck.in_channels = [24, 32, 48]
model.tokenizer.embed_dim = 32
model.tokenizer.position_embedding.num_feats = 16
dataloader.train.dataset.names = "tiny_digits_train"
dataloader.train.num_workers = 0
dataloader.test.dataset.names = "tiny_digits_val"
dataloader.test.num_workers = 0
train.max_iter = 6
train.log_period = 1
train.eval_period = 6
train.device = "cpu"
train.seed = 3
