"""Backbones: any timm model that can return feature maps, under one face."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor, nn


class TimmBackbone(nn.Module):
    """Feature maps of a timm model by Detectron2's stage names.

    Args:
        name: timm model name, e.g. "resnet50".
        out_features: stages to return, "res2" (stride 4) to "res5" (stride 32).
        pretrained: load timm's weights (needs the network or a filled cache).
        checkpoint_path: load the weights from this file instead.
        freeze_at: stages without gradient: 0 none, 1 the stem, 2 also res2, ... (Detectron2's meaning).
        frozen_batch_norm: use the stored statistics and affine parameters of batch norm, untrained.
        model_args: further arguments of the timm model.

    Raises:
        OSError: pretrained weights are not to be had, or there is no file at `checkpoint_path`.
        ValueError: the weights in this file do not fit.
    """

    STAGES = ("stem", "res2", "res3", "res4", "res5")

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        freeze_at: int = 0,
        frozen_batch_norm: bool = False,
        model_args: Mapping[str, Any] | None = None,
    ):
        try:
            import timm
            from timm.layers import freeze_batch_norm_2d
        except ImportError as error:
            raise ImportError("backbones need timm and torchvision: pip install timm torchvision") from error
        super().__init__()
        if unknown := set(out_features) - set(self.STAGES[1:]):
            raise ValueError(f"out_features {sorted(unknown)} unknown, expected some of {self.STAGES[1:]}")
        self.out_features = tuple(out_features)
        if OmegaConf.is_config(model_args):
            model_args = OmegaConf.to_container(model_args, resolve=True)
        indices = [self.STAGES.index(feature) for feature in out_features]
        try:
            self.body = timm.create_model(
                name, features_only=True, out_indices=indices, pretrained=pretrained, **(model_args or {})
            )
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise OSError(
                f"pretrained weights of timm model {name!r} could not be loaded ({error}); without a network, "
                "set checkpoint_path to a local file and pretrained=False"
            ) from error
        if checkpoint_path is not None:
            self.load(checkpoint_path, name)
        self.out_channels = tuple(self.body.feature_info.channels())
        if frozen_batch_norm:
            self.body = freeze_batch_norm_2d(self.body)
        self.freeze(freeze_at)

    def load(self, path: str, name: str) -> None:
        """Load timm weights from a .safetensors or .pth file; a classifier in it is ignored."""
        from timm.models import load_state_dict

        if not Path(path).is_file():
            raise FileNotFoundError(f"backbone weights not found: {path}")
        weights = load_state_dict(path, weights_only=True)
        try:
            missing, _ = self.body.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit timm model {name!r}: {error}") from error
        if missing:
            raise ValueError(
                f"{path} does not hold the weights of timm model {name!r}: {len(missing)} missing, e.g. {missing[:3]}"
            )

    def freeze(self, freeze_at: int) -> None:
        """Stop gradients of the first `freeze_at` stages; children before the first stage form the stem."""
        stages = [info["module"] for info in self.body.feature_info.info][1:]
        stage = 0
        for child_name, child in self.body.named_children():
            if child_name in stages:
                stage = stages.index(child_name) + 1
            if stage < freeze_at:
                child.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> maps (B, C_l, H_l, W_l) by stage name."""
        return dict(zip(self.out_features, self.body(images), strict=True))
