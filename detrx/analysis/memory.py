"""Memory that a detector needs for its activations."""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from detrx.d2.structures import Boxes, Instances
from detrx.d2.utils import EventStorage


def peak_allocation(function: Callable[[], object], device: str) -> int:
    """Bytes that a call of `function` allocates on the device, at its peak, beyond what was allocated before.

    On a CPU every allocation of PyTorch's own allocator counts, also inside of kernels, but not what other libraries
    allocate for themselves. On a GPU one call before warms up.
    """
    if device.startswith("cuda"):
        function()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or the profiler reports that there is no GPU as an error
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def inference_memory(model: nn.Module, image: Tensor) -> int:
    """Bytes of activations at the peak of inference on one image (3, H, W) uint8, detections included."""
    with torch.no_grad():
        return peak_allocation(lambda: model.eval()([{"image": image}]), str(image.device))


def training_memory(model: nn.Module, image: Tensor, batch_size: int, boxes_per_image: int) -> int:
    """Bytes at the peak of a training step (forward and backward pass) without the optimizer.

    The gradients of the parameters count, the parameters do not. Methods take part. The model is left in evaluation
    mode, without gradients; buffers that training steps change are changed.

    Args:
        image: (3, H, W) uint8, all images of the batch.
        boxes_per_image: random boxes of class 0.
    """
    batch = [{"image": image, "instances": random_instances(image, boxes_per_image)} for _ in range(batch_size)]
    model.train().zero_grad(set_to_none=True)
    try:
        with torch.enable_grad(), EventStorage(0):
            return peak_allocation(partial(_training_step, model, batch), str(image.device))
    finally:
        model.eval().zero_grad(set_to_none=True)


def _training_step(model: nn.Module, batch: list[dict]) -> None:
    model.zero_grad(set_to_none=True)
    sum(model(batch).values()).backward()


def random_instances(image: Tensor, count: int) -> Instances:
    """Ground truth of an image (3, H, W): boxes of class 0 with sides of a tenth to half of the image's."""
    size = image.new_tensor(image.shape[:0:-1], dtype=torch.float32)
    extent = (0.1 + 0.4 * torch.rand(count, 2, device=image.device)) * size
    corner = torch.rand(count, 2, device=image.device) * (size - extent)
    classes = torch.zeros(count, dtype=torch.int64, device=image.device)
    boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
    return Instances(tuple(image.shape[1:]), gt_boxes=boxes, gt_classes=classes)
