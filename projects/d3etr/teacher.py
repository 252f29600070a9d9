"""The teacher of a distillation: a frozen detector, loaded on demand and separate from the student."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrx.checkpoint.checkpointer import AtomicCheckpointer, CheckpointError
from detrx.config_zoo import read_config
from detrx.d2.config import instantiate
from detrx.d2.structures import ImageList
from detrx.engine.config import without_pretrained
from detrx.engine.renamed import rename_targets
from detrx.errors import InvalidInputError
from detrx.layers import Attention, AttentionInputs, recording
from detrx.modeling import (
    CrossEntropyLoss,
    DecoderLayer,
    DetectionTransformer,
    MultiScaleTokens,
    Predictions,
    QueryGroup,
)

logger = logging.getLogger(__name__)

_SHOWN_TENSORS = 5


@dataclass(frozen=True)
class Lesson:
    """Outputs of the teacher for a batch, without gradients.

    Attributes:
        queries: the teacher's main group.
        predictions: predictions of this group, float32.
        attention: attention inputs of each layer, by watched component of the decoder layers.
        shapes: (H_l, W_l) of the levels of the teacher's tokens.
    """

    queries: QueryGroup
    predictions: Predictions
    attention: Mapping[str, Sequence[AttentionInputs]]
    shapes: tuple[tuple[int, int], ...]

    def of_last_layers(self, count: int) -> Lesson:
        """The lesson of the last `count` decoder layers."""
        return replace(
            self,
            predictions=self.predictions.of_layers(slice(len(self.predictions.logits) - count, None)),
            attention={component: calls[-count:] for component, calls in self.attention.items()},
        )


class Teacher:
    """A frozen detector in evaluation mode, loaded on first use.

    It is not an `nn.Module`: a student that has it as an attribute does not own its parameters, and copies of the
    student share it. Loading it does not change the random state.

    Args:
        config: file of a config, a name in the model zoo, or a config with a `model`.
        checkpoint: file of its weights; averaged weights are used if it has any.
        allow_untrained: an empty `checkpoint` means random weights, for tests.
        share_images: use the images as normalised by the student; otherwise, normalise them again for the teacher.
    """

    def __init__(
        self,
        config: str | Mapping[str, object],
        checkpoint: str,
        allow_untrained: bool = False,
        share_images: bool = True,
    ):
        if not isinstance(config, str) and not (isinstance(config, Mapping) and "model" in config):
            raise InvalidInputError(
                f"teacher must be the file or name of a config, or a config with a model, got {config!r}"
            )
        self.config, self.checkpoint = config, checkpoint
        self.allow_untrained, self.share_images = allow_untrained, share_images
        self._model: DetectionTransformer | None = None
        self._compared: tuple[tuple[Tensor, ...], bool] | None = None
        self._encoded: tuple[ImageList, MultiScaleTokens] | None = None

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    def __repr__(self) -> str:
        return f"Teacher({self.config if isinstance(self.config, str) else 'config'!r}, {self.checkpoint!r})"

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> DetectionTransformer:
        """The detector, moved to a device and converted to a dtype.

        Raises:
            ValueError: no checkpoint is given.
            CheckpointError, FileNotFoundError: the config or the checkpoint is missing, or they do not fit each other.
        """
        model = self.model
        if model.device != device or model.pixel_mean.dtype != dtype:
            model.to(device, dtype)
        return model

    @property
    def model(self) -> DetectionTransformer:
        """The detector, wherever it is. Raises what `on` raises."""
        if self._model is None:
            with torch.random.fork_rng(devices=[]):
                self._model = freeze(self.load())
        return self._model

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.model.decoder.layers)

    def load(self) -> DetectionTransformer:
        if not self.checkpoint and not self.allow_untrained:
            raise InvalidInputError(
                "distillation needs the weights of its teacher: set `checkpoint` of the method to a file "
                "(model.methods.N.checkpoint=FILE)"
            )
        config = self.config
        if isinstance(config, str):
            config = read_config(config)
            rename_targets(config)
        model = instantiate(without_pretrained(copy.deepcopy(config["model"])))
        if self.checkpoint:
            try:
                AtomicCheckpointer(model, prefer_ema=True).load(self.checkpoint, checkpointables=[], strict=True)
            except CheckpointError as error:
                raise CheckpointError(f"teacher of the distillation: {error}") from error
        else:
            logger.warning("The teacher of the distillation has random weights.")
        model.methods = nn.ModuleList()
        return model

    @torch.no_grad()
    def encode(self, student: DetectionTransformer, images: ImageList) -> MultiScaleTokens:
        """The teacher's encoded tokens of the images that `student` normalised and padded.

        They are kept until `forget`, so that all methods of a step that have this teacher run it once.

        Raises:
            ValueError: the images cannot be shared.
        """
        if self._encoded is None or self._encoded[0] is not images:
            model = self.on(student.device, student.pixel_mean.dtype)
            own = self.renormalised(student, model, images)
            self._encoded = images, model.encode_padded(own.tensor, model.padding_mask(own))
        return self._encoded[1]

    def forget(self) -> None:
        """Release the tokens of the last images."""
        self._encoded = None

    @torch.no_grad()
    def teach(self, student: DetectionTransformer, images: ImageList, watched: Sequence[str]) -> Lesson:
        """Run the teacher on the images that `student` normalised and padded.

        Args:
            watched: components of the decoder layers, "self_attn" and "cross_attn", whose attention is recorded.

        Raises:
            ValueError: the images cannot be shared, or a watched component has no dense attention.
        """
        memory = self.encode(student, images)
        model = self.on(student.device, student.pixel_mean.dtype)
        main, _ = model.query_source(memory)
        attentions = {component: attentions_of(model, component, "the teacher") for component in watched}
        with recording([each for of_layers in attentions.values() for each in of_layers]) as records:
            predictions = model.decoder([main], memory)["main"]
        calls = iter([call for (call,) in records])
        attention = {component: [next(calls) for _ in of_layers] for component, of_layers in attentions.items()}
        predictions = Predictions(predictions.logits.float(), predictions.boxes.float())
        return Lesson(main, predictions, attention, memory.shapes)

    def renormalised(self, student: DetectionTransformer, model: DetectionTransformer, images: ImageList) -> ImageList:
        """The images with the teacher's normalisation.

        Raises:
            ValueError: the images should be shared, but teacher and student normalise them differently.
        """
        if self.same_pixels(student, model) and student.mask_padding == model.mask_padding:
            return images
        if self.share_images:
            raise InvalidInputError(
                "Distillation: pixel_mean, pixel_std or mask_padding of the teacher differ from the student's, so they "
                "cannot share the images: set share_images=False"
            )
        tensor = torch.zeros_like(images.tensor)
        for index, (height, width) in enumerate(images.image_sizes):
            pixels = images.tensor[index, :, :height, :width] * student.pixel_std + student.pixel_mean
            tensor[index, :, :height, :width] = (pixels - model.pixel_mean) / model.pixel_std
        return ImageList(tensor, images.image_sizes)

    def same_pixels(self, student: DetectionTransformer, model: DetectionTransformer) -> bool:
        """Whether both normalise images in the same way. The result is cached for these buffers, because comparing them
        makes the host wait for the device."""
        buffers = (student.pixel_mean, student.pixel_std, model.pixel_mean, model.pixel_std)
        if self._compared is None or any(a is not b for a, b in zip(self._compared[0], buffers, strict=True)):
            mean, std, other_mean, other_std = buffers
            self._compared = buffers, torch.equal(mean, other_mean) and torch.equal(std, other_std)
        return self._compared[1]


def freeze(model: DetectionTransformer) -> DetectionTransformer:
    """Set the model to evaluation mode and disable gradients."""
    return model.eval().requires_grad_(False)


def attentions_of(model: DetectionTransformer, component: str, owner: str) -> list[Attention]:
    """The `component` ("self_attn" or "cross_attn") of each decoder layer.

    Raises:
        ValueError: it has no dense attention maps; the message calls the model `owner`.
    """
    attentions = []
    for index, layer in enumerate(model.decoder.layers):
        attention = getattr(layer, component)
        if type(layer) is not DecoderLayer or not isinstance(attention, Attention):
            raise InvalidInputError(
                f"Distillation of {component} compares dense attention maps of all queries, but decoder layer {index} "
                f"of {owner} is a {type(layer).__name__} with {type(attention).__name__}: remove it from `losses`"
            )
        attentions.append(attention)
    return attentions


def has_softmax(model: DetectionTransformer) -> bool:
    """Whether the class heads have a last logit for "no object"."""
    return any(isinstance(loss, CrossEntropyLoss) for each in model.criterion.supervisions for loss in each.losses)


@torch.no_grad()
def inherit(student: DetectionTransformer, teacher: DetectionTransformer, parts: Sequence[str]) -> None:
    """Copy the weights of some parts of the teacher, such as "encoder" and "decoder", to the student.

    Raises:
        ValueError: there is no such part, or its tensors differ; the message names the first ones.
    """
    pairs, problems, differing = [], [], []
    for part in parts:
        if not isinstance(getattr(student, part, None), nn.Module) or not isinstance(
            getattr(teacher, part, None), nn.Module
        ):
            raise InvalidInputError(
                f"inherit: {part!r} is not a part of both student and teacher; use parts such as 'encoder' or 'decoder'"
            )
        before = len(problems)
        own, other = getattr(student, part).state_dict(), getattr(teacher, part).state_dict()
        for key in [*own, *(key for key in other if key not in own)]:
            name = f"{part}.{key}"
            if key not in other:
                problems.append(f"{name} (not in the teacher)")
            elif key not in own:
                problems.append(f"{name} (not in the student)")
            elif own[key].shape != other[key].shape:
                problems.append(f"{name} ({tuple(other[key].shape)} there, {tuple(own[key].shape)} here)")
            else:
                pairs.append((own[key], other[key]))
        if len(problems) > before:
            differing.append(part)
    if problems:
        shown = ", ".join(problems[:_SHOWN_TENSORS]) + (", ..." if len(problems) > _SHOWN_TENSORS else "")
        raise InvalidInputError(
            f"Distillation cannot initialise {', '.join(parts)} from the teacher, {len(problems)} tensors differ: "
            f"{shown}. {hints_for(differing)}"
        )
    for own, other in pairs:
        own.copy_(other)


def hints_for(differing: Sequence[str]) -> str:
    """What to change if these parts of the student have other tensors than the teacher's."""
    hints, parts = [], [part for part in differing if part != "query_source"]
    if parts:
        hints.append(
            f"Give the student's {' and '.join(parts)} the teacher's widths and number of layers, or leave "
            f"{'them' if len(parts) > 1 else 'it'} out of `inherit`"
        )
    if "query_source" in differing:
        hints.append(
            "Give model.query_source the teacher's num_queries and widths, or keep the student's queries: "
            'queries="own", without query_source in `inherit`'
        )
    return ". ".join(hints)
