"""The meta-architecture of all detection transformers."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detrx.d2.modeling import META_ARCH_REGISTRY
from detrx.d2.structures import ImageList, Instances
from detrx.errors import InvalidInputError
from detrx.layers import to_device
from detrx.layers.module_list import TypedModuleList

from .criterion import Criterion, Supervision
from .decoder import Decoder
from .methods import Branch, Method, Step
from .postprocess import TopDetections
from .queries import Predictions
from .query_source import QuerySource
from .targets import Targets
from .tokens import MultiScaleTokens, masks_of_levels, pad_features


@META_ARCH_REGISTRY.register()
class DetectionTransformer(nn.Module):
    """A detection transformer, put together from its parts; takes Detectron2's `list[dict]`.

    Args:
        backbone: images (B, 3, H, W) -> feature maps by name.
        neck: feature maps by name -> list of maps of one width.
        tokenizer: maps -> token sequence with positions.
        encoder: token sequence -> token sequence.
        query_source: encoded tokens -> main query group, and the encoder's own predictions.
        decoder: query groups -> predictions.
        criterion: predictions and ground truth -> losses; needed only for training.
        postprocess: predictions -> detections.
        methods: training methods, in the order in which they are called; not used at inference.
        pixel_mean, pixel_std: normalisation of the 0..255 RGB input.
        mask_padding: exclude the padding of smaller images in a batch from attention, positions and references. At
            inference, backbone and neck then also run separately for each image size, so an image gets the same
            detections in any batch.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        tokenizer: nn.Module,
        encoder: nn.Module,
        query_source: QuerySource,
        decoder: Decoder,
        criterion: Criterion | None,
        postprocess: TopDetections,
        methods: Sequence[Method] = (),
        pixel_mean: Sequence[float] = (123.675, 116.280, 103.530),
        pixel_std: Sequence[float] = (58.395, 57.120, 57.375),
        mask_padding: bool = True,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.query_source = query_source
        self.decoder = decoder
        self.criterion = criterion
        self.postprocess = postprocess
        self.mask_padding = mask_padding
        self.register_buffer("pixel_mean", torch.tensor(tuple(pixel_mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(tuple(pixel_std)).view(3, 1, 1), persistent=False)
        if not isinstance(methods, Sequence) or not all(isinstance(method, Method) for method in methods):
            raise InvalidInputError(f"model.methods must be a list of methods (detrx.modeling.Method), got {methods!r}")
        self.methods = TypedModuleList(methods)
        for method in self.methods:
            method.attach(self)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: per image "image" (3, H, W) in 0..255 RGB; in training "instances" with `gt_boxes` (xyxy in
                pixels of "image") and `gt_classes`; for inference optionally "height" and "width" of the output frame.
                Tensors may be on the host, preferably in pinned memory, or on the model's device.

        Returns:
            training: weighted losses by name. Otherwise per image {"instances": Instances} with `pred_boxes` (xyxy in
            pixels of the output frame), `scores`, `pred_classes` and `pred_queries`, in descending order of score. They
            are on the model's device; the host waits for it once per batch.

        Raises:
            ValueError: in training, if there is no criterion, or the images are too small for trained normalisation.
            FloatingPointError: at inference, if boxes are NaN or infinite.
        """
        if self.training:
            self.training_criterion()
        images = self.preprocess(batched_inputs)
        if self.training:
            instances = [each["instances"] for each in batched_inputs]
            image_ids = [each.get("image_id", index) for index, each in enumerate(batched_inputs)]
            targets = Targets.from_instances(instances, image_ids, self.device)
            # A graph of torch.compile could not end inside of `try`.
            run = self.train_step if torch.compiler.is_compiling() else self.train_step_on_named_images
            predictions, supervisions, step = run(images, targets)
            losses = self.training_criterion()(predictions, targets, supervisions)
            for method in self.methods:
                own = method.extra_losses(step, predictions)
                if taken := own.keys() & losses.keys():
                    raise InvalidInputError(
                        f"{type(method).__name__} gives losses {sorted(taken)}, and these names are taken"
                    )
                losses |= own
            return losses
        frames = [
            (each.get("height", height), each.get("width", width))
            for each, (height, width) in zip(batched_inputs, images.image_sizes, strict=True)
        ]
        detections = self.postprocess(self.decode(self.encode(images))["main"], images.image_sizes, frames)
        return [{"instances": each} for each in detections]

    def training_criterion(self) -> Criterion:
        """
        Raises:
            ValueError: there is none.
        """
        if self.criterion is None:
            raise InvalidInputError("model.criterion is None, but training needs a Criterion")
        return self.criterion

    @torch.compiler.disable  # Detectron2's ImageList would be compiled anew for every size
    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise the images and pad them at the right and bottom to the largest height and width."""
        return ImageList.from_tensors(
            [self.normalise(to_device(each["image"], self.device)) for each in batched_inputs]
        )

    def normalise(self, images: Tensor) -> Tensor:
        """(..., 3, H, W) in 0..255, of any dtype -> normalised images in the dtype of the model."""
        return ((images - self.pixel_mean.float()) / self.pixel_std.float()).to(self.pixel_mean.dtype)

    def padding_mask(self, images: ImageList) -> Tensor | None:
        """(B, H, W) bool, True for padding; None if there is no padding, or `mask_padding` is off."""
        height, width = images.tensor.shape[-2:]
        if not self.mask_padding or all(tuple(size) == (height, width) for size in images.image_sizes):
            return None
        sizes = to_device(torch.tensor(images.image_sizes), self.device)
        below = torch.arange(height, device=self.device) >= sizes[:, :1]
        right = torch.arange(width, device=self.device) >= sizes[:, 1:]
        return below[:, :, None] | right[:, None, :]

    def encode(self, images: ImageList) -> MultiScaleTokens:
        """Encoded tokens of a batch of images."""
        padding_mask = self.padding_mask(images)
        if self.training or padding_mask is None:
            return self.encode_padded(images.tensor, padding_mask)
        maps: list[list[Tensor]] = [[]] * len(images)
        for size in set(images.image_sizes):
            same = [index for index, other in enumerate(images.image_sizes) if other == size]
            alike = torch.stack([images.tensor[index, :, : size[0], : size[1]] for index in same])
            features = self.neck(self.backbone(alike))
            for index, *levels in zip(same, *features, strict=True):
                maps[index] = levels
        fewest = min(sum(level[0].numel() for level in levels) for levels in maps)
        return self.encoder(self.tokenizer(*pad_features(maps), fewest))

    def encode_padded(self, images: Tensor, padding_mask: Tensor | None) -> MultiScaleTokens:
        """Encoded tokens of normalised, padded images (B, 3, H, W); `padding_mask` (B, H, W) bool, True for padding."""
        features = self.neck(self.backbone(images))
        masks = None if padding_mask is None else masks_of_levels(padding_mask, features)
        return self.encoder(self.tokenizer(features, masks))

    def decode(self, memory: MultiScaleTokens) -> dict[str, Predictions]:
        """Inference: predictions of the main group and of the encoder, by name."""
        main, predictions = self.query_source(memory)
        return predictions | self.decoder([main], memory)

    def prepare_training(self) -> None:
        """Let methods change parameters.

        Called at the beginning of every training step. Call it before copying the model for an average of weights, too.
        """
        for method in self.methods:
            method.prepare(self)

    def train_step(self, images: ImageList, targets: Targets) -> tuple[dict[str, Predictions], list[Supervision], Step]:
        """Everything of a training step up to the losses.

        Args:
            images: as returned by `preprocess`.

        Returns:
            predictions of all groups and of the encoder, by name; all supervisions, those of methods last; and the step
            as the methods saw it.
        """
        self.prepare_training()
        memory = self.encode(images)
        supervisions: Sequence[Supervision] = self.training_criterion().supervisions
        for method in self.methods:
            supervisions = method.supervise(supervisions)
        for method in self.methods:
            supervisions = method.supervise_last(supervisions)
        asking = {method: method.further for method in self.methods if method.further is not None}
        (main, *further), predictions = self.query_source.groups(memory, list(asking.values()))
        of_methods = dict(zip(asking, further, strict=True))
        step = Step(self, memory, main, predictions, targets, of_methods, images=images, supervisions=supervisions)
        branches: list[Branch] = []
        names = {main.name, *predictions}
        for method in self.methods:
            step = replace(step, branches=tuple(branches))
            branches += named_apart(method, method.branches(step), names)
        for branch in branches:
            predictions = {**predictions, **branch.predictions}
        groups = [branch.group for branch in branches if branch.group is not None]
        step = replace(step, branches=tuple(branches))
        with ExitStack() as watching:
            for method in self.methods:
                if type(method).during_decoder is not Method.during_decoder:  # a graph of torch.compile would end here
                    watching.enter_context(method.during_decoder(step))
            predictions = predictions | self.decoder([main, *groups], memory)
        for method in self.methods:
            for branch in named_apart(method, method.after_decoder(step, predictions), names):
                predictions = {**predictions, **branch.predictions}
                branches.append(branch)
        of_branches = (each for branch in branches for each in branch.supervisions)
        return predictions, [*supervisions, *of_branches], step

    def train_step_on_named_images(
        self, images: ImageList, targets: Targets
    ) -> tuple[dict[str, Predictions], list[Supervision], Step]:
        """`train_step`, whose error about too few values for a normalisation names the images.

        Raises:
            ValueError: a map has a single value per channel.
        """
        try:
            return self.train_step(images, targets)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            shown = ", ".join(
                f"{image_id!r} ({height} x {width})"
                for image_id, (height, width) in zip(targets.image_ids, images.image_sizes, strict=True)
            )
            raise InvalidInputError(
                "normalisation in training needs more than one value per channel, but a map of this batch has one: "
                f"image ids {shown}, in height x width. Use larger images, several images per batch and process, or "
                "frozen batch norm (model.backbone.frozen_batch_norm=True)"
            ) from error

    def predict(self, images: Tensor, padding_mask: Tensor | None) -> dict[str, Predictions]:
        """Inference on normalised, padded images (B, 3, H, W); the backbone sees the padding, as in training."""
        return self.decode(self.encode_padded(images, padding_mask))


def as_detection_transformer(model: nn.Module) -> DetectionTransformer:
    """The model itself, for code that needs more of it than detections.

    Raises:
        ValueError: it is another kind of model.
    """
    if not isinstance(model, DetectionTransformer):
        raise InvalidInputError(f"the model is a {type(model).__name__}, expected a DetectionTransformer of detrx")
    return model


def named_apart(method: Method, branches: Sequence[Branch], names: set[str]) -> Sequence[Branch]:
    """Return the branches of a method, and add the names of their groups and predictions to `names`.

    Raises:
        ValueError: `names` already has one of them.
    """
    for branch in branches:
        added = {*branch.predictions, *(() if branch.group is None else (branch.group.name,))}
        if taken := added & names:
            raise InvalidInputError(
                f"{type(method).__name__} in model.methods adds {sorted(taken)}, and these names are taken: "
                "two methods of this kind cannot be combined"
            )
        names |= added
    return branches
