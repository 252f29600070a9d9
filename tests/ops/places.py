"""Where a test of the operators runs them: a CPU, a GPU, or a CPU that emulates the GPU's kernels."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tests.cuda_on_cpu.emulation import Emulation


class Place:
    """Puts tensors on a device, and calls operators there.

    Attributes:
        device: of the tensors, "cpu" or "cuda".
        emulated: whether the CPU runs the kernels of the GPU.
        calls: of operators that were emulated.
    """

    def __init__(self, device: str, seed: int | None = None) -> None:
        self.device, self.emulated, self.seed = device, seed is not None, seed
        self.calls = 0

    @contextlib.contextmanager
    def kernels(self, max_blocks: int = 0, check: bool = True) -> Iterator[None]:
        """In this context operators run the kernels of this place; tensors for them are to be made in it.

        Emulated grids are cut to `max_blocks` blocks in x, and `check` tells whether their memory is watched.
        """
        if self.seed is None:
            yield
            return
        # Another seed every time: results that depend on the order of threads differ.
        self.seed += 1
        emulation = Emulation(self.seed, max_blocks, check)
        try:
            with emulation:
                yield
        finally:
            self.calls += emulation.calls

    def put(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of the tensor, here."""
        return tensor.detach().to(self.device, dtype, copy=True)


CPU = Place("cpu")


def assert_near(ours: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Relative to each number, and to the largest of its tensor where that is more than one."""
    for a, b in zip(ours, expected, strict=True):
        a, b = a.cpu().double(), b.cpu().double()
        largest = b.nan_to_num(0, 0, 0).abs().max().item() if b.numel() else 0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1, largest), equal_nan=True)
