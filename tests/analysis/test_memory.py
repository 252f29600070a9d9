"""Peak memory: allocations are counted to the byte."""

import torch

from detrx.analysis.memory import inference_memory, peak_allocation, random_instances, training_memory
from tests.projects.contract import HybridBranch, detector, switch_on


def test_what_is_freed_makes_room():
    def one_after_the_other():
        for _ in range(3):
            torch.empty(1000 * 256)

    assert peak_allocation(one_after_the_other, "cpu") == 1000 * 1024


def test_what_is_alive_together_adds_up():
    def together():
        first = torch.empty(1000 * 256)
        second = first + 1
        del first
        torch.empty(500 * 256)
        del second

    together()
    peak = peak_allocation(together, "cpu")
    assert 2000 * 1024 <= peak < 2001 * 1024


def test_what_was_there_before_does_not_count():
    old = [torch.empty(1000 * 256)]
    assert peak_allocation(old.clear, "cpu") == 0
    assert peak_allocation(lambda: old.append(torch.empty(256)), "cpu") == 1024


def test_memory_kept_inside_of_a_kernel_counts():
    conv, x = torch.nn.Conv2d(8, 8, 3, bias=False), torch.randn(1, 8, 64, 64)
    with torch.no_grad():
        assert peak_allocation(lambda: conv(x), "cpu") >= 8 * 62 * 62 * 4


def test_training_needs_more_than_inference_and_methods_more_than_none():
    plain, image = detector("deformable_detr_plus_plus"), torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    inference, training = inference_memory(plain, image), training_memory(plain, image, 1, 3)
    assert not plain.training and all(parameter.grad is None for parameter in plain.parameters())
    gradients = sum(4 * parameter.numel() for parameter in plain.parameters() if parameter.requires_grad)
    assert inference < training and gradients < training
    hybrid = switch_on(detector("deformable_detr_plus_plus"), HybridBranch(num_queries=100, copies=3))
    assert inference_memory(hybrid, image) == inference
    assert training_memory(hybrid, image, 1, 3) > training


def test_random_instances_lie_in_the_image():
    found = random_instances(torch.empty(3, 40, 80), 50)
    boxes = found.gt_boxes.tensor
    assert found.image_size == (40, 80) and boxes.shape == (50, 4)
    assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor([80, 40])).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= torch.tensor([7.9, 3.9])).all()
