"""The teacher of a distillation: loaded when it is needed, frozen, no part of the student."""

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
from detrx.modeling import CrossEntropyLoss, DecoderLayer, DetectionTransformer, Predictions, QueryGroup

logger = logging.getLogger(__name__)

_SHOWN_TENSORS = 5


@dataclass(frozen=True)
class Lesson:
    """What the teacher makes of a batch; nothing of it has a gradient.

    Attributes:
        queries: its main group.
        predictions: of this group, float32.
        attention: by component of the decoder layers, what it compared in each layer; those that were asked for.
        shapes: (H_l, W_l) of the levels of its tokens.
    """

    queries: QueryGroup
    predictions: Predictions
    attention: Mapping[str, Sequence[AttentionInputs]]
    shapes: tuple[tuple[int, int], ...]

    def of_last_layers(self, count: int) -> Lesson:
        """That of the last `count` decoder layers."""
        return replace(
            self,
            predictions=self.predictions.of_layers(slice(len(self.predictions.logits) - count, None)),
            attention={component: calls[-count:] for component, calls in self.attention.items()},
        )


class Teacher:
    """A frozen detector in evaluation mode, which is loaded when it is first asked for.

    It is no module: a student that has it as an attribute does not have its parameters, and copies of the student share
    it. Loading it draws no random numbers.

    Args:
        config: file of a config, or a name in the model zoo, or a config with a `model`.
        checkpoint: file of its weights; of averaged ones, if it has any.
        allow_untrained: an empty `checkpoint` means random weights, for tests.
        share_images: it gets the images as the student normalised them; otherwise they are normalised again, as its own
            config says.
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

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    def __repr__(self) -> str:
        return f"Teacher({self.config if isinstance(self.config, str) else 'config'!r}, {self.checkpoint!r})"

    def on(self, device: torch.device) -> DetectionTransformer:
        """The detector on a device, to which it stays moved.

        Raises:
            ValueError: there is no checkpoint.
            CheckpointError, FileNotFoundError: the config or the checkpoint is missing, or does not fit the other.
        """
        if self._model is None:
            with torch.random.fork_rng(devices=[]):
                self._model = freeze(self.load())
        if self._model.device != device:
            self._model.to(device)
        return self._model

    def load(self) -> DetectionTransformer:
        if not self.checkpoint and not self.allow_untrained:
            raise InvalidInputError(
                "Distillation needs the weights of its teacher: set `checkpoint` of the method to their file "
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
                raise CheckpointError(f"teacher of Distillation: {error}") from error
        else:
            logger.warning("The teacher of Distillation has random weights.")
        model.methods = nn.ModuleList()
        return model

    @torch.no_grad()
    def teach(self, student: DetectionTransformer, images: ImageList, watched: Sequence[str]) -> Lesson:
        """What the teacher makes of the images that `student` normalised and padded.

        Args:
            watched: components of the decoder layers, "self_attn" and "cross_attn", whose attention is recorded.

        Raises:
            ValueError: the images cannot be shared, or a watched component has no dense attention.
        """
        model = self.on(student.device)
        images = self.renormalised(student, model, images)
        memory = model.encode_padded(images.tensor, model.padding_mask(images))
        main, _ = model.query_source(memory)
        attentions = {component: attentions_of(model, component, "the teacher") for component in watched}
        with recording([each for of_layers in attentions.values() for each in of_layers]) as records:
            predictions = model.decoder([main], memory)["main"]
        calls = iter([call for (call,) in records])
        attention = {component: [next(calls) for _ in of_layers] for component, of_layers in attentions.items()}
        predictions = Predictions(predictions.logits.float(), predictions.boxes.float())
        return Lesson(main, predictions, attention, memory.shapes)

    def renormalised(self, student: DetectionTransformer, model: DetectionTransformer, images: ImageList) -> ImageList:
        """The images as the teacher normalises them.

        Raises:
            ValueError: they should be shared, but teacher and student normalise them in different ways.
        """
        if self.same_pixels(student, model) and student.mask_padding == model.mask_padding:
            return images
        if self.share_images:
            raise InvalidInputError(
                "Distillation: pixel_mean, pixel_std or mask_padding of the teacher are not the student's, so they "
                "cannot share the images: set share_images=False"
            )
        tensor = torch.zeros_like(images.tensor)
        for index, (height, width) in enumerate(images.image_sizes):
            pixels = images.tensor[index, :, :height, :width] * student.pixel_std + student.pixel_mean
            tensor[index, :, :height, :width] = (pixels - model.pixel_mean) / model.pixel_std
        return ImageList(tensor, images.image_sizes)

    def same_pixels(self, student: DetectionTransformer, model: DetectionTransformer) -> bool:
        """Whether both normalise images in the same way. To compare the buffers the host waits for the device, so it
        remembers what came out for these."""
        buffers = (student.pixel_mean, student.pixel_std, model.pixel_mean, model.pixel_std)
        if self._compared is None or any(a is not b for a, b in zip(self._compared[0], buffers, strict=True)):
            mean, std, other_mean, other_std = buffers
            self._compared = buffers, torch.equal(mean, other_mean) and torch.equal(std, other_std)
        return self._compared[1]


def freeze(model: DetectionTransformer) -> DetectionTransformer:
    """In evaluation mode, without gradients."""
    return model.eval().requires_grad_(False)


def attentions_of(model: DetectionTransformer, component: str, owner: str) -> list[Attention]:
    """The `component` ("self_attn" or "cross_attn") of each decoder layer.

    Raises:
        ValueError: it has no dense attention maps; `owner` is what the message calls the model.
    """
    attentions = []
    for index, layer in enumerate(model.decoder.layers):
        attention = getattr(layer, component)
        if type(layer) is not DecoderLayer or not isinstance(attention, Attention):
            raise InvalidInputError(
                f"Distillation of {component} compares dense attention maps of all queries, but decoder layer {index} "
                f"of {owner} is a {type(layer).__name__} with {type(attention).__name__}: leave it out of `losses`"
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
        ValueError: there is no such part, or they have other weights; names the first ones.
    """
    pairs, problems = [], []
    for part in parts:
        if not isinstance(getattr(student, part, None), nn.Module) or not isinstance(
            getattr(teacher, part, None), nn.Module
        ):
            raise InvalidInputError(
                f"inherit: {part!r} is no part of student and teacher, such as 'encoder' or 'decoder'"
            )
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
    if problems:
        shown = ", ".join(problems[:_SHOWN_TENSORS]) + (", ..." if len(problems) > _SHOWN_TENSORS else "")
        raise InvalidInputError(
            f"Distillation cannot initialise {', '.join(parts)} from the teacher, {len(problems)} tensors differ: "
            f"{shown}. Give the student the teacher's widths and numbers of layers, or set inherit=[]"
        )
    for own, other in pairs:
        own.copy_(other)
