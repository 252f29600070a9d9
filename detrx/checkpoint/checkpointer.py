"""Checkpoints that are written atomically, read safely and checked against the model."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detrx.atomic import write_atomically
from detrx.d2.checkpoint import DetectionCheckpointer
from detrx.errors import first_line

from .convert import CheckpointConversionError, detect_format, owner_of
from .files import load_safely, read_weights
from .forms import averaged_weights, state_dict_in
from .messages import CheckpointError, differences
from .query_rows import first_queries, more_queries

__all__ = ["AtomicCheckpointer", "CheckpointError"]


class AtomicCheckpointer(DetectionCheckpointer):
    """The provider's `DetectionCheckpointer`, with checkpoints that are written atomically and checked when loaded.

    A checkpoint is ``{"model": state dict, name: state of each checkpointable, ...}``. It holds only tensors, numbers,
    strings and plain containers, so ``torch.load(weights_only=True)`` can read it.

    Args:
        model: the module, plain or wrapped by DistributedDataParallel.
        save_dir: local folder of the checkpoints.
        tag_last: write the name of every saved checkpoint to ``last_checkpoint``, the file to resume from.
        prefer_ema: load the averaged weights of a checkpoint (entry "ema") instead of "model", if it has them.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        tag_last: bool = True,
        prefer_ema: bool = False,
        **checkpointables: Any,
    ):
        super().__init__(getattr(model, "_orig_mod", model), save_dir, **checkpointables)  # as torch.compile calls it
        self._tag_last = tag_last
        self._prefer_ema = prefer_ema
        self._strict = self._fewer_queries = False
        self._path = ""

    def save(self, name: str, **extra: Any) -> None:
        """Write ``{name}.pth``. Only rank 0 writes, but every process must call it if checkpointables communicate.

        Args:
            name: file name without suffix.
            extra: additional entries of the checkpoint.
        """
        if not self.save_dir:
            return
        checkpoint = {"model": self.model.state_dict()}
        checkpoint.update((key, item.state_dict()) for key, item in self.checkpointables.items())
        checkpoint.update(extra)
        if not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        os.makedirs(self.save_dir, exist_ok=True)
        write_atomically(path, lambda file: torch.save(checkpoint, file))
        if self._tag_last:
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the ``last_checkpoint`` tag: the file of this folder to resume from."""
        tag = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(tag, lambda file: file.write(last_filename_basename.encode()))

    def load(
        self,
        path: str,
        checkpointables: list[str] | None = None,
        *,
        strict: bool = False,
        fewer_queries: bool = False,
    ) -> dict[str, Any]:
        """Load the model and those checkpointables whose state is in the file.

        Args:
            path: file or URL; nothing is loaded if it is "".
            checkpointables: names of those to load; None: all.
            strict: require that the file fits the model exactly.
            fewer_queries: if the file has more queries than the model, take the first ones.

        Returns:
            The entries of the checkpoint that were not used.

        Raises:
            CheckpointError: the file is missing or damaged, or does not fit the model: it differs in any way if
                ``strict``, or has no tensor in common with it otherwise.
        """
        if not path:
            return super().load(path, checkpointables)
        local_path = self.path_manager.get_local_path(path)
        if os.path.isdir(local_path):
            raise CheckpointError(f"checkpoint {path} is a folder: {_in_folder(local_path)}")
        if not os.path.isfile(local_path):
            raise CheckpointError(f"checkpoint {path} does not exist{self._others()}")
        self._strict, self._fewer_queries, self._path = strict, fewer_queries, path
        return super().load(path, checkpointables)

    def resume(self) -> dict[str, Any]:
        """Load everything from the last checkpoint of the folder, which must be from this training.

        Raises:
            CheckpointError: as in :meth:`load`, or the file has no training state.
        """
        path = self.get_checkpoint_file()
        try:
            return self.load(path, strict=True)
        except (ValueError, KeyError) as error:  # optimizers refuse the state of other parameter groups
            raise CheckpointError(f"the training state in {path} does not fit this config: {error}") from error

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """:meth:`resume` if asked to and there is a checkpoint, otherwise load the weights in ``path``, if any."""
        if resume and self.has_checkpoint():
            return self.resume()
        return self.load(path, checkpointables=[])

    @property
    def _resumes(self) -> bool:
        """Whether the state of a training is to be loaded, too."""
        return self._strict and "trainer" in self.checkpointables

    def _load_file(self, filename: str) -> dict[str, Any]:
        where = f"checkpoint {self._path}"
        if filename.endswith(".safetensors"):
            return {"model": read_weights(filename)}
        if filename.endswith((".pkl", ".pyth")):  # Detectron2 would run the code in it
            raise CheckpointError(f"{where} is a pickle: convert it with tools/convert_checkpoint.py")
        try:
            content = load_safely(Path(filename), where=where)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{self._others()}") from error
        use_ema = self._prefer_ema and averaged_weights(content) is not None
        # Of other trainers' files, only the weights.
        is_ours = isinstance(content, dict) and isinstance(content.get("model"), dict)
        checkpoint = dict(content) if is_ours else {}
        checkpoint["model"] = state_dict_in(content, where, ema=use_ema)
        if use_ema:
            checkpoint.pop("ema", None)
            self.logger.info("Using the averaged (EMA) weights of %s", self._path)
        if self._resumes and "trainer" not in checkpoint:
            raise CheckpointError(
                f"{self._path} has no training state to resume from; train.init_checkpoint takes only its weights"
            )
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]):
        keys = list(checkpoint["model"])
        hint, more = "", more_queries(checkpoint["model"], self.model)
        numbers = ", ".join(map(str, more))
        if more and self._fewer_queries:
            checkpoint["model"] = first_queries(checkpoint["model"], more)
            self.logger.info("Checkpoint %s has %s: taking the first ones", self._path, numbers)
        elif more and not self._resumes:
            hint = f". It has {numbers}: train.fewer_queries=True takes the first ones"
        try:
            incompatible = super()._load_model(checkpoint)
        except ValueError as error:
            raise CheckpointError(f"{self._path} is not a checkpoint of a model: {first_line(error)}") from error
        wrong_shapes = [f"{key} {there} instead of {here}" for key, there, here in incompatible.incorrect_shapes]
        missing = sorted(set(incompatible.missing_keys) - {key for key, *_ in incompatible.incorrect_shapes})
        problems = {
            "missing": missing,
            "unexpected": sorted(incompatible.unexpected_keys),
            "of another shape": sorted(wrong_shapes),
        }
        if not any(problems.values()):
            return None
        matched = len(keys) - len(incompatible.unexpected_keys) - len(wrong_shapes)
        if self._strict or matched <= 0:
            raise CheckpointError(
                f"checkpoint {self._path} is from another model: {differences(problems)}{hint or _foreign(keys)}"
            )
        lists = "".join(f"\n  {kind}: {', '.join(names)}" for kind, names in problems.items() if names)
        self.logger.warning(
            "Checkpoint %s fits the model in part: %d tensors loaded%s.%s", self._path, matched, hint, lists
        )
        return None

    def _others(self) -> str:
        """The end of an error message: the checkpoints in the folder."""
        files = sorted(os.listdir(self.save_dir)) if self.save_dir and os.path.isdir(self.save_dir) else []
        files = [file for file in files if file.endswith(".pth")]
        return f"; {self.save_dir} has {', '.join(files)}" if files else ""


def _in_folder(folder: str) -> str:
    """The end of an error message: what to give instead of a folder."""
    files = sorted(file for file in os.listdir(folder) if file.endswith((".pth", ".pt", ".ckpt")))
    if files:
        return f"give one of its files ({', '.join(files)})"
    return "give a file, or convert a folder of transformers with tools/convert_checkpoint.py"


def _foreign(keys: list[str]) -> str:
    """The end of an error message: how to use a checkpoint of another code base."""
    try:
        return f". Its format is {detect_format(keys)}: convert it with tools/convert_checkpoint.py"
    except CheckpointConversionError:
        owner = owner_of(keys)
    return "" if owner is None else f". It has the names of {owner}, which tools/convert_checkpoint.py does not know"
