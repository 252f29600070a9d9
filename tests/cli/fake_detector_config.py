"""Config of a "detector" that finds the white rectangle in a black image, for the tests of the tools."""

import torch
from omegaconf import OmegaConf
from torch import nn

from detrx.d2.config import LazyCall as L
from detrx.d2.structures import Boxes, Instances
from detrx.data import DetectionMapper, build_test_loader, get_detection_dataset_dicts, resize_augmentation


class RectangleFinder(nn.Module):
    """Says so with a score of `score` (and, to be thresholded away, again with .1), and calls it class 1."""

    def __init__(self):
        super().__init__()
        self.score = nn.Parameter(torch.tensor(0.0))

    def forward(self, inputs):
        outputs = []
        for item in inputs:
            assert item["image"].shape[-1] == 120, "the mapper of the config was not used"
            y, x = torch.nonzero(item["image"][0] > 127, as_tuple=True)
            box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
            box *= item["width"] / item["image"].shape[-1]
            instances = Instances((item["height"], item["width"]))
            instances.pred_boxes = Boxes(box.repeat(2, 1))
            instances.scores = torch.stack([self.score, torch.tensor(0.1)])
            instances.pred_classes = torch.tensor([1, 0])
            outputs.append({"instances": instances})
        return outputs


model = L(RectangleFinder)()
dataloader = OmegaConf.create()
dataloader.test = L(build_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="detrx_test_rectangles", filter_empty=False),
    mapper=L(DetectionMapper)(is_train=False, augmentations=L(resize_augmentation)(size=80, max_size=200)),
)

optimizer, lr_multiplier, train = OmegaConf.create(), OmegaConf.create(), OmegaConf.create()
