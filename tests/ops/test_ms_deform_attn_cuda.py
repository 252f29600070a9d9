"""The CUDA kernels of detrx.ops.ms_deform_attn against the CPU ones; `make gpu-check` runs them."""

import pytest
import torch

from detrx.ops import has_kernel, ms_deform_attn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.skipif(not has_kernel("ms_deform_attn", "cuda"), reason="no compiled CUDA kernel"),
]


def results(device: str, dtype: torch.dtype, channels: int, queries: int = 70, batch: int = 2) -> list[torch.Tensor]:
    """Output and gradients, in float64 on the CPU, of inputs that are the same for all devices."""
    generator = torch.Generator().manual_seed(0)
    shapes, starts = torch.tensor([[7, 9], [4, 5], [1, 3]]), torch.tensor([0, 63, 83])
    value = torch.randn(batch, 86, 3, channels, generator=generator)
    locations = torch.rand(batch, queries, 3, 3, 4, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(batch, queries, 3, 3, 4, generator=generator)
    direction = torch.randn(batch, queries, 3 * channels, generator=generator)
    # Rounded to `dtype` first: all that remains is the error of the computation.
    value, locations, weights, direction = (
        x.to(dtype).to(device, torch.float64 if device == "cpu" else dtype).requires_grad_()
        for x in (value, locations, weights, direction)
    )
    output = ms_deform_attn(value, shapes.to(device), starts.to(device), locations, weights)
    gradients = torch.autograd.grad(output, (value, locations, weights), direction.detach())
    return [x.detach().cpu().double() for x in (output, *gradients)]


@pytest.mark.parametrize("channels", [1, 5, 16, 32, 64, 100])
@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)]
)
def test_matches_cpu(channels, dtype, tolerance):
    for ours, expected in zip(results("cuda", dtype, channels), results("cpu", dtype, channels), strict=True):
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}])
def test_empty_inputs(sizes):
    output, grad_value, *_ = results("cuda", torch.float32, 16, **sizes)
    assert output.numel() == 0 and not grad_value.any()


def test_current_stream_and_device():
    expected = results("cuda", torch.float32, 32)
    with torch.cuda.stream(torch.cuda.Stream()):
        for a, b in zip(results("cuda", torch.float32, 32), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
