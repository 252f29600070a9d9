"""The CUDA kernels of deformable attention against the CPU ones; `make gpu-check` runs them."""

import pytest
import torch

from detrx.ops import has_kernel, ms_deform_attn, ms_deform_attn_fused

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.skipif(not has_kernel("ms_deform_attn", "cuda"), reason="no compiled CUDA kernel"),
]
KINDS = ["unfused", "points", "boxes"]  # the last two: the fused operator, by its reference
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def make_inputs(kind: str, channels: int, queries: int = 70, batch: int = 2, points: int = 4) -> list[torch.Tensor]:
    """Floating-point arguments, the same for all devices, and a direction for the gradient."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, 86, 3, channels, generator=generator)
    weights = torch.randn(batch, queries, 3, 3, points, generator=generator)
    direction = torch.randn(batch, queries, 3 * channels, generator=generator)
    if kind == "unfused":
        locations = torch.rand(batch, queries, 3, 3, points, 2, generator=generator) * 1.6 - 0.3
        return [value, locations, weights.flatten(3).softmax(-1).view_as(weights), direction]
    reference = torch.rand(batch, queries, 3, 2 if kind == "points" else 4, generator=generator)
    offsets = (1 if kind == "points" else points) * torch.randn(batch, queries, 3, 3, points, 2, generator=generator)
    return [value, reference, offsets, weights, direction]


def run(kind: str, floats: list[torch.Tensor], device: str) -> list[torch.Tensor]:
    """Output and gradients of all but the last of `floats`, which are on `device`."""
    operator = ms_deform_attn if kind == "unfused" else ms_deform_attn_fused
    shapes, starts = torch.tensor([[7, 9], [4, 5], [1, 3]]), torch.tensor([0, 63, 83])
    leaves = [x.requires_grad_() for x in floats[:-1]]
    output = operator(leaves[0], shapes.to(device), starts.to(device), *leaves[1:])
    return [output, *torch.autograd.grad(output, leaves, floats[-1])]


def on_cuda(kind: str, dtype: torch.dtype, channels: int, **sizes: int) -> list[torch.Tensor]:
    return run(kind, [x.to("cuda", dtype) for x in make_inputs(kind, channels, **sizes)], "cuda")


def assert_matches_cpu(kind: str, dtype: torch.dtype, channels: int, **sizes: int) -> None:
    # Rounded to `dtype` first: all that remains is the error of the computation.
    expected = run(kind, [x.to(dtype).double() for x in make_inputs(kind, channels, **sizes)], "cpu")
    tolerance = TOLERANCE[dtype]
    for a, b in zip(on_cuda(kind, dtype, channels, **sizes), expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=tolerance, atol=tolerance * max(1, b.abs().max().item()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 5, 16, 32, 64, 100])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_matches_cpu(kind, channels, dtype):
    assert_matches_cpu(kind, dtype, channels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("points", [1, 3, 37])
@pytest.mark.parametrize("queries", [1, 71])
def test_any_points_and_queries(kind, points, queries):
    for channels in (5, 16, 32):
        assert_matches_cpu(kind, torch.float32, channels, points=points, queries=queries)
        assert_matches_cpu(kind, torch.bfloat16, channels, points=points, queries=queries)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("channels", [5, 32])
def test_deterministic_mode(kind, dtype, channels):
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (on_cuda(kind, dtype, channels, queries=1000) for _ in range(2))
        assert_matches_cpu(kind, dtype, channels)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_slices_that_begin_anywhere(kind):
    floats = [x.cuda() for x in make_inputs(kind, 32)]
    expected = run(kind, [x.clone() for x in floats], "cuda")
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x) for x in floats]
    for a, b in zip(run(kind, shifted, "cuda"), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"points": 0}])
def test_empty_inputs(kind, sizes):
    output, grad_value, *_ = on_cuda(kind, torch.float32, 16, **sizes)
    assert not output.any() and not grad_value.any()


@pytest.mark.parametrize("kind", KINDS)
def test_current_stream(kind):
    expected = on_cuda(kind, torch.float32, 32)
    with torch.cuda.stream(torch.cuda.Stream()):
        for a, b in zip(on_cuda(kind, torch.float32, 32), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_more_than_2_to_the_31_elements():
    """Only the last query's head reads something else than zero."""
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB")
    queries, heads, channels = 2**22, 8, 66
    value = torch.zeros(1, 4, heads, channels, device="cuda", dtype=torch.float16)
    value[:, 3] = 1
    locations = torch.full((1, queries, heads, 1, 1, 2), 0.25, device="cuda", dtype=torch.float16)
    locations[0, -1, -1] = 0.75
    weights = torch.ones(1, queries, heads, 1, 1, device="cuda", dtype=torch.float16)
    shapes, starts = torch.tensor([[2, 2]], device="cuda"), torch.tensor([0], device="cuda")
    output = ms_deform_attn(value, shapes, starts, locations, weights).view(queries, heads, channels)
    assert output.numel() > 2**31 and not output[:-1].any() and not output[-1, :-1].any()
    assert (output[-1, -1] == 1).all()
