"""Backbones: a common interface to all timm models that can return feature maps."""

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from detrx.errors import InvalidInputError, MissingImportError, UnavailableError, first_line

if TYPE_CHECKING:
    from timm.models import FeatureInfo

logger = logging.getLogger(__name__)

_SHOWN = 5  # tensors that a message names


class TimmBackbone(nn.Module):
    """Feature maps of a timm model by Detectron2's stage names.

    Stages are named by their stride: "stem" (2), "res2" (4), "res3" (8), "res4" (16), "res5" (32). A stage that keeps
    the stride of the previous one takes the next number: in a DC5 ResNet (`model_args={"output_stride": 16}`), "res5"
    has stride 16. Images may have any size; models for a fixed size accept other sizes if timm supports that.

    Args:
        name: timm model name, with or without the tag of its weights, e.g. "resnet50.tv_in1k".
        out_features: stages to return.
        pretrained: load timm's weights (needs a network or a filled cache).
        checkpoint_path: load the weights from this .pth or .safetensors file instead; see `load`.
        freeze_at: number of frozen stages, as in Detectron2: 0 none, 1 the stem (including patch and position
            embeddings), 2 also res2, ... Frozen stages have no gradients, and their batch norm is not trained.
        frozen_batch_norm: use the stored statistics and affine parameters of batch norm, without training them.
        norm_features: add a LayerNorm over the channels of each returned map, as detectors with Swin and ConvNeXt do.
        activation_checkpointing: recompute activations in the backward pass to save memory.
        model_args: further arguments of the timm model, e.g. `drop_path_rate`.

    Attributes:
        out_features, out_channels, out_strides: names, channels and strides of the returned maps, finest first.

    Raises:
        OSError: pretrained weights cannot be loaded, or there is no file at `checkpoint_path`.
        ValueError: timm has no such model, the model has no such stage or argument, or the weights do not fit.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        pretrained: bool = False,
        checkpoint_path: str | None = None,
        freeze_at: int = 0,
        frozen_batch_norm: bool = False,
        norm_features: bool = False,
        activation_checkpointing: bool = False,
        model_args: Mapping[str, Any] | None = None,
    ):
        try:
            from .batch_norm import freeze_batch_norm
        except ImportError as error:
            raise MissingImportError("backbones need timm and torchvision: pip install timm torchvision") from error
        super().__init__()
        if pretrained and checkpoint_path is not None:
            raise InvalidInputError(f"pretrained=True and checkpoint_path={checkpoint_path!r} exclude each other")
        self.name = name
        plain = OmegaConf.to_container(OmegaConf.create(dict(model_args or {})), resolve=True)
        assert isinstance(plain, dict)
        timm_args = accept_any_size(name, {str(key): value for key, value in plain.items()})
        names = stage_names(read_strides(name, timm_args))
        if unknown := [feature for feature in out_features if feature not in names]:
            raise InvalidInputError(f"out_features {unknown} unknown, timm model {name!r} has {names}")
        indices = sorted(names.index(feature) for feature in set(out_features))
        self.body = create_body(name, pretrained, indices, timm_args)
        self.out_features = tuple(names[index] for index in indices)
        self.out_channels = tuple(feature_info(self.body).channels())
        self.out_strides = tuple(feature_info(self.body).reduction())
        self.norms = nn.ModuleDict()
        if norm_features:
            eps = next((module.eps for module in self.body.modules() if isinstance(module, nn.LayerNorm)), 1e-5)
            for feature, channels in zip(self.out_features, self.out_channels, strict=True):
                self.norms[feature] = nn.LayerNorm(channels, eps=eps)
        if checkpoint_path is not None:
            self.load(checkpoint_path)
        if frozen_batch_norm:
            self.body = freeze_batch_norm(self.body)
        if freeze_at > 0:
            self.freeze(freeze_at)
        if activation_checkpointing:
            self.checkpoint_activations()
        # For faster convolutions.
        self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares it for tensors only

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> maps (B, C_l, H_l, W_l) by stage name; sizes are rounded up by ResNet and Swin."""
        features = {}
        images = images.contiguous(memory_format=torch.channels_last)
        channels_last = str(getattr(self.body, "output_fmt", "NCHW")).endswith("NHWC")
        for name, feature in zip(self.out_features, self.body(images), strict=True):
            if name in self.norms:
                feature = feature if channels_last else feature.permute(0, 2, 3, 1)
                features[name] = self.norms[name](feature).permute(0, 3, 1, 2)
            else:
                features[name] = feature.permute(0, 3, 1, 2) if channels_last else feature
        return features

    def own_names(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the weights of a backbone, in any naming that `to_timm` recognises, to the names of this module.

        Weights that this module does not have keep their names.
        """
        from detrx.checkpoint.backbones import to_timm

        expected = self.state_dict().keys()
        renamed = {}
        for key, value in to_timm(weights).items():
            # timm joins the first two parts of some names, and nests some models one level deeper.
            forms = (key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}")
            known = [f"body.{form}" for form in forms if f"body.{form}" in expected]
            renamed[known[0] if known else key] = value
        return renamed

    def load(self, path: str) -> None:
        """Load the weights from a file of a backbone, in any naming that `to_timm` recognises, or of a whole detector.

        Weights that this model does not have, such as a classifier's, are ignored.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it cannot be read safely, weights are missing, or shapes differ; the message lists them.
        """
        from timm.models import load_state_dict

        from detrx.checkpoint.backbones import split_backbone
        from detrx.checkpoint.efficientnet import how_to_make

        if not Path(path).is_file():
            raise FileNotFoundError(f"backbone weights not found: {path}{how_to_make(self.name, path)}")
        try:
            weights = load_state_dict(path, weights_only=True)
        except Exception as error:  # pickle, zip and safetensors have their own types
            raise InvalidInputError(f"{path} cannot be read as a file of weights: {first_line(error)}") from error
        backbone, rest = split_backbone(weights)
        found = self.own_names(backbone)
        expected = self.state_dict()
        missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
        if not any(key.startswith("norms.") for key in found):
            missing = [key for key in missing if not key.startswith("norms.")]  # an image classifier has none
        wrong = [
            f"{key} is {tuple(found[key].shape)} instead of {tuple(value.shape)}"
            for key, value in expected.items()
            if key in found and found[key].shape != value.shape
        ]
        if missing or wrong:
            problems = [f"{key} is missing" for key in missing] + wrong
            raise InvalidInputError(
                f"{path} does not hold the weights of timm model {self.name!r}; {len(problems)} of {len(expected)} "
                f"tensors do not fit: {'; '.join(problems[:_SHOWN])}{'; ...' if len(problems) > _SHOWN else ''}"
            )
        unused = [key for key in found if key not in expected] + list(rest)
        if unused:
            logger.info(
                "%s: ignored %d weights that are not part of the backbone, e.g. %s", path, len(unused), unused[0]
            )
        self.load_state_dict({key: found[key] for key in expected if key in found}, strict=False)

    def freeze(self, freeze_at: int) -> None:
        """Disable gradients and batch norm training in the first `freeze_at` stages."""
        from .batch_norm import freeze_batch_norm

        for name, number in self._stage_of_modules().items():
            if number > freeze_at:
                continue
            module = self.body.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                self.body.set_submodule(name, freeze_batch_norm(module))

    def _stage_of_modules(self) -> dict[str, int]:
        """Map the names of the body's modules to the number of their stage: 1 the stem, 2 res2, ...

        Like timm, this assumes that modules are registered in the order in which they run.
        """
        order = [name for name, _ in self.body.named_modules()]
        features = feature_info(self.body)
        info = features.info[: max(features.out_indices) + 1]
        numbers = stage_numbers([stage["reduction"] for stage in info])
        result: dict[str, int] = {}
        begin = 0
        for index, (stage, number) in enumerate(zip(info, numbers, strict=True)):
            module = stage["module"]
            forms = (module, module.replace(".", "_", 1), f"model.{module}", f"body.{module}")
            inside = [i for i, name in enumerate(order) if any((name + ".").startswith(form + ".") for form in forms)]
            if not inside or inside[-1] < begin:
                raise InvalidInputError(
                    f"timm model {self.name!r} does not say where its stages end; freeze_at must be 0"
                )
            if index == 0:
                result.update((name, min(1, number)) for name in order[: inside[0]])
                begin = inside[0]
            result.update((name, number) for name in order[begin : inside[-1] + 1])
            begin = inside[-1] + 1
        return result

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass, by block, or by stage if timm supports only that.

        Raises:
            ValueError: the timm model does not support it.
        """
        able = [module for module in self.body.modules() if "grad_checkpointing" in vars(module)]
        if not able:
            raise InvalidInputError(f"timm model {self.name!r} has no activation checkpointing")
        for module in able[1:] if able[0] is self.body and len(able) > 1 else able:
            module.grad_checkpointing = True  # type: ignore[assignment]  # torch declares tensors and modules only


def stage_numbers(strides: Sequence[int]) -> list[int]:
    """Detectron2's stage numbers (1 is the stem) for stages with these strides."""
    numbers: list[int] = []
    for stride in strides:
        numbers.append(max(round(math.log2(stride)), *(number + 1 for number in numbers[-1:]), 0))
    return numbers


def stage_names(strides: Sequence[int]) -> list[str]:
    """Stage names "stem", "res2", ... for stages with these strides."""
    return ["stem" if number == 1 else f"res{number}" for number in stage_numbers(strides)]


def accept_any_size(name: str, model_args: dict[str, Any]) -> dict[str, Any]:
    """Add arguments to `model_args` that make a timm model accept images of any size.

    Raises:
        ValueError: timm has no model of this name.
    """
    import timm

    if not timm.is_model(name):
        similar = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        raise InvalidInputError(
            f"timm has no model {name!r}" + (f"; similar ones: {', '.join(similar)}" if similar else "")
        )
    if "img_size" in model_args:
        return model_args
    if timm.models.is_model_in_modules(name, ["swin_transformer"]):
        # always_partition: otherwise the last stage does not shift its windows, whatever the size.
        return {"strict_img_size": False, "always_partition": True, **model_args}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        return {"dynamic_img_size": True, **model_args}
    return model_args


def read_strides(name: str, model_args: dict[str, Any]) -> list[int]:
    """Strides of all stages of a timm model. Removes `dynamic_img_size` from `model_args` if the model has no such
    argument.

    Raises:
        ValueError: the model cannot be built with these arguments, or returns no feature maps.
    """
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name, features_only=True, **model_args)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        if "dynamic_img_size" in str(error) and model_args.pop("dynamic_img_size", None):
            return read_strides(name, model_args)
        raise InvalidInputError(
            f"timm model {name!r} gives no feature maps with model_args {model_args}: {first_line(error)}"
        ) from error
    return [stage["reduction"] for stage in feature_info(model).info]


def feature_info(body: nn.Module) -> "FeatureInfo":
    """What timm says of the feature maps of a model that returns them."""
    return body.feature_info  # type: ignore[return-value]  # timm has no class for these models


def create_body(name: str, pretrained: bool, indices: list[int], model_args: dict[str, Any]) -> nn.Module:
    """The timm model: (B, 3, H, W) -> list of the feature maps at `indices`.

    Raises:
        OSError: pretrained weights cannot be loaded.
    """
    import timm

    from .swin import pad_before_shift

    try:
        body = timm.create_model(name, features_only=True, out_indices=indices, pretrained=pretrained, **model_args)
    except Exception as error:  # the same model has been built without weights; hubs raise errors of many types
        if not pretrained:
            raise
        raise UnavailableError(
            f"pretrained weights of timm model {name!r} could not be loaded ({type(error).__name__}: "
            f"{first_line(error)}); without a network, set pretrained=False and checkpoint_path to a local file"
        ) from error
    for module in body.modules():
        if hasattr(module, "dynamic_img_pad"):  # patch embeddings, which otherwise need multiples of the patch size
            module.dynamic_img_pad = True  # type: ignore[assignment]  # torch declares tensors and modules only
    pad_before_shift(body)
    return body
