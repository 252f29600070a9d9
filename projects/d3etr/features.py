"""Distillation of encoder features: the student's encoded tokens learn those of the teacher."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from detrx.errors import InvalidInputError
from detrx.modeling import Branch, DetectionTransformer, Method, MultiScaleTokens, Predictions, Step

from .feature_losses import FeatureLoss
from .teacher import Teacher


class EncoderDistillation(Method):
    """The student's encoded tokens learn those of the teacher, token by token (Table 4 of the paper).

    Beside `Distillation`, it uses the teacher of that method, which runs once for both.

    Args:
        loss: compares the tokens; its parameters are trained, and not used at inference.
        teacher: see `Distillation`; None: the teacher of another method in `model.methods`.
        checkpoint: file of the teacher's weights, if `teacher` is given.
        share_images, allow_untrained: see `Distillation`, if `teacher` is given.
    """

    def __init__(
        self,
        loss: FeatureLoss,
        teacher: str | Mapping[str, object] | None = None,
        checkpoint: str = "",
        share_images: bool = True,
        allow_untrained: bool = False,
    ):
        super().__init__()
        if teacher is None and checkpoint:
            raise InvalidInputError(f"EncoderDistillation has checkpoint={checkpoint!r}, but no teacher: set `teacher`")
        self.loss = loss
        self.teacher = None if teacher is None else Teacher(teacher, checkpoint, allow_untrained, share_images)
        self._taught: MultiScaleTokens | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_taught": None}

    def attach(self, model: DetectionTransformer) -> None:
        if self.teacher is None:
            teachers = (getattr(method, "teacher", None) for method in model.methods)
            self.teacher = next((each for each in teachers if isinstance(each, Teacher)), None)
        if self.teacher is None:
            raise InvalidInputError(
                "EncoderDistillation has no teacher: set `teacher` and `checkpoint`, or add Distillation to "
                "model.methods"
            )

    def branches(self, step: Step) -> list[Branch]:
        self._taught = self.teacher.encode(step.model, step.images)
        return []

    def extra_losses(self, step: Step, predictions: Mapping[str, Predictions]) -> dict[str, Tensor]:
        taught, self._taught = self._taught, None
        self.teacher.forget()
        return self.loss(step.memory, taught, step.targets)
