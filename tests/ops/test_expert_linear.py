"""detrx.ops.expert_linear: one product per expert, and torch's grouped product with the same results."""

import importlib
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from detrx.ops import can_use_grouped_mm, expert_ends, expert_linear

MODULE = importlib.import_module("detrx.ops.expert_linear")


def linear_inputs(dtype=torch.float64) -> list[Tensor]:
    ends = torch.tensor([3, 3, 8, 9], dtype=torch.int32)
    x, weight, bias = torch.randn(9, 4), torch.randn(4, 4, 3), torch.randn(4, 3)
    return [*(t.to(dtype).requires_grad_() for t in (x, weight, bias)), ends]


@pytest.mark.parametrize("relu", [False, True])
def test_expert_linear_gradients(relu):
    inputs = linear_inputs()
    assert torch.autograd.gradcheck(lambda *t: expert_linear(*t, relu=relu), inputs)
    torch.library.opcheck(torch.ops.detrx.expert_linear.default, (*linear_inputs(torch.float32), relu))


@pytest.mark.parametrize("onednn", [False, True])
def test_expert_linear_in_float32(onednn, monkeypatch):
    monkeypatch.setattr(MODULE, "_ONEDNN_LINEAR", onednn)
    monkeypatch.setattr(MODULE, "_BLOCK", 256 * 600)  # the largest expert in several blocks
    ends = torch.tensor([700, 701, 701, 1000], dtype=torch.int32)
    x, weight, bias = (
        t.requires_grad_() for t in (torch.randn(1000, 33), torch.randn(4, 33, 600), torch.randn(4, 600))
    )
    results = []
    for dtype in (torch.float32, torch.float64):
        output = expert_linear(x.to(dtype), weight.to(dtype), bias.to(dtype), ends, relu=True)
        results.append([output, *torch.autograd.grad(output.square().sum(), (x, weight, bias))])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), expected.double(), rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_expert_linear_of_strided_inputs():
    x, weight, bias, ends = (t.detach() for t in linear_inputs(torch.float32))
    strided = x.t().contiguous().t(), weight.transpose(1, 2).contiguous().transpose(1, 2), bias.t().contiguous().t()
    torch.testing.assert_close(expert_linear(*strided, ends), expert_linear(x, weight, bias, ends))


@pytest.mark.parametrize(
    "index,replacement,error,message",
    [
        (0, torch.randn(9, 4, 1), ValueError, r"x has shape \[9, 4, 1\]"),
        (1, torch.randn(4, 5, 3), ValueError, r"weight has shape \[4, 5, 3\], expected \(E, 4, O\) .*\[9, 4\]"),
        (2, torch.randn(4, 2), ValueError, r"bias has shape \[4, 2\], expected \[4, 3\] .*\[4, 4, 3\]"),
        (3, torch.tensor([4, 5]).int(), ValueError, r"ends has shape \[2\], expected \[4\]"),
        (
            3,
            torch.tensor([4, 8, 8, 8]).int(),
            ValueError,
            r"ends .*\[4\] end with 8, expected 9, .* x of shape \[9, 4\]",
        ),
        (3, torch.tensor([4, 6, 9, 8]).int(), ValueError, r"ends\[3\] is 8, less than the 9"),
        (3, torch.tensor([-1, 6, 9, 9]).int(), ValueError, r"ends\[0\] is -1, less than the 0"),
        (3, torch.tensor([4, 9, 9, 9]), TypeError, "ends of shape .* has dtype torch.int64"),
        (1, torch.randn(4, 4, 3).double(), TypeError, "weight of shape .* has dtype torch.float64"),
        (2, torch.randn(4, 3, device="meta"), ValueError, "bias of shape .* is on meta, x of shape .* on cpu"),
    ],
)
def test_malformed_expert_linear(index, replacement, error, message):
    inputs = linear_inputs(torch.float32)
    inputs[index] = replacement
    with pytest.raises(error, match=f"expert_linear: {message}"):
        expert_linear(*inputs)


GPU = torch.device("cuda:0")
needs_grouped_mm = pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped_mm")


@pytest.fixture
def hopper(monkeypatch) -> Iterator[None]:
    """What torch would say of an H100, wherever the test runs."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    MODULE._has_grouped_kernel.cache_clear()
    yield
    MODULE._has_grouped_kernel.cache_clear()


@needs_grouped_mm
@pytest.mark.parametrize("channels", [8, 16, 256, 1000])
@pytest.mark.parametrize("experts", [1, 8, 1023])
def test_torch_accepts_what_the_grouped_product_is_used_for(hopper, channels, experts):
    """Its own checks of dtypes, shapes and strides, in the three products of a layer."""
    assert can_use_grouped_mm(GPU, torch.bfloat16, experts, channels, 64)
    assert can_use_grouped_mm(GPU, torch.bfloat16, experts, 64, channels)
    for rows in (1, 7):
        x, grad = (torch.empty(rows, c, dtype=torch.bfloat16, device="meta") for c in (channels, 64))
        weight = torch.empty(experts, channels, 64, dtype=torch.bfloat16, device="meta")
        ends = torch.empty(experts, dtype=torch.int32, device="meta")
        outputs = [
            F.grouped_mm(x, weight, offs=ends),
            F.grouped_mm(grad, weight.transpose(1, 2), offs=ends),
            F.grouped_mm(x.t(), grad, offs=ends),
        ]
        assert [y.shape for y in outputs] == [(rows, 64), (rows, channels), weight.shape]
        assert all(y.is_contiguous() for y in outputs)


@pytest.mark.parametrize(
    "device,dtype,experts,inputs,outputs",
    [
        ("cpu", torch.bfloat16, 8, 64, 64),
        ("cuda:0", torch.float32, 8, 64, 64),
        ("cuda:0", torch.float16, 8, 64, 64),
        ("cuda:0", torch.bfloat16, 0, 64, 64),
        ("cuda:0", torch.bfloat16, 1024, 64, 64),
        ("cuda:0", torch.bfloat16, 8, 60, 64),
        ("cuda:0", torch.bfloat16, 8, 64, 4),
        ("cuda:0", torch.bfloat16, 8, 0, 64),
        ("cuda:0", torch.bfloat16, 8, 64, 0),
    ],
)
def test_where_there_is_no_grouped_product(hopper, device, dtype, experts, inputs, outputs):
    assert not can_use_grouped_mm(torch.device(device), dtype, experts, inputs, outputs)


@needs_grouped_mm
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)])
def test_gpus_with_a_grouped_product(hopper, monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert can_use_grouped_mm(GPU, torch.bfloat16, 8, 64, 64) == (capability in [(9, 0), (10, 0)])
    monkeypatch.setattr(torch.version, "cuda", None)
    MODULE._has_grouped_kernel.cache_clear()
    assert not can_use_grouped_mm(GPU, torch.bfloat16, 8, 64, 64)


@needs_grouped_mm
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("ends", [[3, 3, 8, 9], [0, 0, 0, 9], [9, 9, 9, 9], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_grouped_product(monkeypatch, ends, relu):
    """On the CPU, where torch computes the grouped product, too, but needs no alignment."""
    rows = torch.tensor(ends, dtype=torch.int32)
    x, weight, bias = torch.randn(ends[-1], 16), torch.randn(4, 16, 8) / 4, torch.randn(4, 8)
    inputs = [t.bfloat16().requires_grad_() for t in (x, weight, bias)]
    direction = torch.randn(ends[-1], 8).bfloat16()
    results = []
    for grouped in (False, True):
        monkeypatch.setattr(MODULE, "can_use_grouped_mm", lambda *_, grouped=grouped: grouped)
        output = expert_linear(*inputs, rows, relu)
        results.append([output, *torch.autograd.grad(output, inputs, direction)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_alignment_for_the_grouped_product():
    storage = torch.arange(65, dtype=torch.bfloat16)
    one_row = storage[:16].as_strided((1, 16), (7, 1))
    for matrix in (storage[1:].view(4, 16), one_row, storage[:64].view(16, 4).t(), storage[:64].view(4, 16)):
        aligned = MODULE._aligned(matrix)
        assert torch.equal(aligned, matrix)
        assert aligned.stride() == (16, 1) and aligned.data_ptr() % 16 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ends_are_read_on_the_host_where_experts_are_multiplied_one_by_one(hopper, monkeypatch, dtype):
    with FakeTensorMode():
        x, weight = torch.empty(9, 16, device=GPU, dtype=dtype), torch.empty(4, 16, 8, device=GPU, dtype=dtype)
        ends = torch.empty(4, dtype=torch.int32, device=GPU)
        assert expert_ends(ends, x, weight).device.type == ("cuda" if dtype == torch.bfloat16 else "cpu")
        output = expert_linear(x, weight, torch.empty(4, 8, device=GPU, dtype=dtype), expert_ends(ends, x, weight))
        assert output.device == GPU and output.shape == (9, 8)
        # torch.autocast is not to be had for a GPU that is not there.
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: device_type == "cuda")
        monkeypatch.setattr(torch, "get_autocast_dtype", lambda device_type: torch.bfloat16)
        assert expert_ends(ends, x, weight).device.type == "cuda"
