"""The pretended GPU is as strict as a real one, and does not see waits that are none."""

import copy

import pytest
import torch
from torch import nn

from .harness import DeviceError, on_pretended_cuda, waits


@on_pretended_cuda
def test_autograd_runs_and_gives_what_the_cpu_gives():
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    layer(x).square().sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    other = copy.deepcopy(layer).to("cuda")
    other.zero_grad(set_to_none=True)
    other(x.to("cuda")).square().sum().backward()
    for parameter, grad in zip(other.parameters(), expected, strict=True):
        assert parameter.grad.device == torch.device("cuda:0")
        torch.testing.assert_close(parameter.grad.to("cpu"), grad, rtol=0, atol=0)


@on_pretended_cuda
def test_tensors_of_two_devices_do_not_mix():
    x = torch.ones(3, device="cuda")
    for wrong in (
        lambda: x + torch.ones(3),
        lambda: torch.cat([x, torch.ones(3)]),
        lambda: torch.ones(3)[x.long()],
        lambda: x.index_put_((torch.tensor([0], device="cuda"),), torch.ones(1)),
        lambda: torch.ones(2, 2, device="cuda", dtype=torch.int64) @ torch.ones(2, 2, device="cuda", dtype=torch.int64),
        lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
        lambda: x.pin_memory(),
    ):
        with pytest.raises(DeviceError):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    assert (x + torch.tensor(1.0)).tolist() == [2.0] * 3, "a number of the host is no tensor"


def _waits(function):
    with waits() as found:
        function()
    return found.count


@on_pretended_cuda
def test_what_waits_and_what_does_not():
    x, index = torch.arange(6.0, device="cuda"), torch.tensor([1, 2], device="cuda")
    mask, pinned = x > 2, torch.ones(3).pin_memory()
    for name, function in {
        "item": lambda: x[0].item(),
        "bool": lambda: bool(x[0] > 1),
        "tolist": lambda: x.tolist(),
        "cpu": lambda: x.cpu(),
        "nonzero": lambda: mask.nonzero(),
        "mask": lambda: x[mask],
        "host list as index": lambda: x[[0, 1]],
        "host tensor as index": lambda: x[torch.tensor([0, 1])],
        "constant to indexed places": lambda: x.__setitem__(index, 1.0),
        "constant of the host in where": lambda: torch.where(mask, x, torch.tensor(1.0)),
        "tensor from numbers": lambda: torch.tensor([1.0], device="cuda"),
        "new_tensor": lambda: x.new_tensor([1.0]),
        "copy": lambda: torch.ones(3).to("cuda"),
        "pinned, but blocking": lambda: pinned.to("cuda"),
        "non-blocking, but not pinned": lambda: torch.ones(3).to("cuda", non_blocking=True),
        "repeat_interleave": lambda: x[:2].repeat_interleave(index),
        "equal": lambda: torch.equal(x, x),
        "synchronize": lambda: torch.cuda.synchronize(),
    }.items():
        assert _waits(function) == 1, name
    for name, function in {
        "pinned": lambda: pinned.to("cuda", non_blocking=True),
        "view of pinned": lambda: pinned[1:].to("cuda", non_blocking=True),
        "empty pinned": lambda: torch.empty(2, pin_memory=True).to("cuda", non_blocking=True),
        "copy_ from pinned": lambda: x[:3].copy_(pinned, non_blocking=True),
        "full": lambda: torch.full((3,), 2.0, device="cuda"),
        "arange": lambda: torch.arange(3, device="cuda"),
        "constants in where": lambda: torch.where(mask, 1.0, 0.0),
        "constant where a mask says": lambda: x.__setitem__(mask, 1.0),
        "slice": lambda: x.__setitem__(slice(2), 1.0),
        "index": lambda: x[index],
        "repeat_interleave with size": lambda: x[:2].repeat_interleave(index, output_size=3),
        "repeat": lambda: x.repeat_interleave(2),
        "scatter of a constant": lambda: x.scatter(0, index, 1.0),
    }.items():
        assert _waits(function) == 0, name


@on_pretended_cuda
@torch.inference_mode()
def test_operators_made_of_others_wait_in_inference_mode_too():
    """There they are not taken apart before they are dispatched."""
    x = torch.arange(6.0, device="cuda")
    assert _waits(lambda: x.to("cpu", torch.float64)) == 1
    assert _waits(lambda: x[x > 2]) == 1
    assert _waits(lambda: x.tolist()) == 1
    assert _waits(lambda: torch.where(x > 2, x, 0.0)) == 0
    assert _waits(lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True)) == 0
    assert (x.repeat_interleave(2) @ torch.ones(12, device="cuda")).item() == 30


@on_pretended_cuda
def test_waits_are_named_by_their_place():
    x = torch.ones(1, device="cuda")
    with waits() as found:
        x.item()
    ((kind, place),) = found
    assert kind == "local_scalar_dense"
    assert place.startswith("tests/pretended_cuda/test_harness.py:")
    assert place in str(found)


@on_pretended_cuda
def test_copies_to_the_host_that_do_not_wait_arrive_when_the_host_has_waited():
    x = torch.arange(3.0, device="cuda")
    with waits() as found:
        host = x.to("cpu", non_blocking=True)
        assert found.count == 0
        assert host.isnan().all()
        event = torch.cuda.Event()
        event.record()
        late = (x + 1).to("cpu", non_blocking=True)
        event.synchronize()
        assert host.tolist() == [0, 1, 2]
        assert late.isnan().all(), "the event was recorded before"
        torch.cuda.synchronize()
        assert late.tolist() == [1, 2, 3]
        assert found.count == 2


@on_pretended_cuda
def test_streams_have_to_wait_for_each_other():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    with pytest.raises(DeviceError, match="without having waited"):
        x + 1
    torch.cuda.current_stream().wait_stream(side)
    assert (x + 1).tolist() == [2, 2, 2]
    with torch.cuda.stream(side), pytest.raises(DeviceError):
        y = x + torch.zeros(3, device="cuda")
        with torch.cuda.stream(torch.cuda.default_stream()):
            y + 1


@on_pretended_cuda
def test_the_device_has_random_numbers_of_its_own():
    torch.manual_seed(0)
    host, device = torch.rand(4), torch.rand(4, device="cuda").cpu()
    torch.manual_seed(0)
    assert torch.equal(torch.rand(4, device="cuda").cpu(), device)
    assert torch.equal(torch.rand(4), host)
    assert not torch.equal(host, device)
    state = torch.cuda.get_rng_state()
    first = torch.nn.functional.dropout(torch.ones(64, device="cuda")).cpu()
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.nn.functional.dropout(torch.ones(64, device="cuda")).cpu(), first)


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(float(index))


@pytest.mark.parametrize("workers", [0, 1])
@on_pretended_cuda
def test_loaders_pin_memory(workers: int):
    for batch in torch.utils.data.DataLoader(Numbers(), batch_size=2, pin_memory=True, num_workers=workers):
        assert batch.is_pinned()
        assert _waits(lambda batch=batch: batch.to("cuda", non_blocking=True)) == 0


def test_other_tests_do_not_see_it():
    assert torch.cuda.get_device_capability.__module__.startswith("torch.")
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.ones(1, device="cuda")
