"""The extension, its absence, and its instruction sets; each in a process of its own."""

import json
import os
import platform
import subprocess
import sys

import pytest

from detrx.ops import extension_info, has_kernel

RESULT = """
import json, sys, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from detrx.ops import (
        extension_info, has_kernel, ms_deform_attn, ms_deform_attn_fused, ms_deform_attn_fused_reference,
        ms_deform_attn_reference,
    )
    generator = torch.Generator().manual_seed(0)
    shapes, starts = torch.tensor([[5, 6], [3, 2]]), torch.tensor([0, 30])
    value = torch.randn(1, 36, 2, 20, generator=generator, requires_grad=True)
    locations = torch.rand(1, 40, 2, 2, 3, 2, generator=generator)
    weights = torch.rand(1, 40, 2, 2, 3, generator=generator)
    output = ms_deform_attn(value, shapes, starts, locations, weights)
    output.square().sum().backward()
    again = ms_deform_attn(value, shapes, starts, locations, weights)
    expected = ms_deform_attn_reference(value, shapes, starts, locations, weights)
    (gradient,) = torch.autograd.grad(expected.square().sum(), value)
    fused_errors = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        inputs = [value, torch.rand(1, 40, 2, 2, generator=generator), locations - 0.5, 4 * weights]
        inputs = [x.detach().to(dtype).requires_grad_() for x in inputs]
        pair = []
        for function in (ms_deform_attn_fused, ms_deform_attn_fused_reference):
            fused = function(inputs[0], shapes, starts, *inputs[1:])
            pair.append([fused, *torch.autograd.grad(fused.float().sum(), inputs)])
        fused_errors += [float((a - b).abs().max() / b.abs().max() / torch.finfo(dtype).eps) for a, b in zip(*pair)]
print(json.dumps({
    "info": extension_info(),
    "kernel": has_kernel("ms_deform_attn", "cpu"),
    "schemas": [str(getattr(torch.ops.detrx, name).default._schema)
                for op in ("ms_deform_attn", "ms_deform_attn_fused") for name in (op, op + "_backward")],
    "error": float((output - expected).abs().max() + (value.grad - gradient).abs().max()),
    "fused error": max(fused_errors),
    "warnings": [str(w.message) for w in caught if "detrx" in str(w.message)],
}))
"""


def run(**environment: str) -> dict:
    result = subprocess.run(
        [sys.executable, "-c", RESULT], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_fallback_without_extension():
    result = run(DETRX_DISABLE_EXT="1")
    assert result["info"] == {"error": "hidden by DETRX_DISABLE_EXT"}
    assert not result["kernel"]
    assert result["error"] < 1e-3
    assert result["fused error"] < 100
    assert len(result["warnings"]) == 1 and "no compiled kernels for cpu" in result["warnings"][0]


@pytest.mark.skipif("error" in extension_info(), reason="no compiled extension")
def test_extension_and_fallback_have_the_same_schemas():
    with_extension = run(DETRX_DISABLE_EXT="0")
    assert with_extension["warnings"] == []
    assert with_extension["schemas"] == run(DETRX_DISABLE_EXT="1")["schemas"]


@pytest.mark.skipif("error" in extension_info() or platform.machine() != "x86_64", reason="no compiled extension")
@pytest.mark.parametrize("isa", ["default", "avx2"])
def test_older_instruction_sets(isa):
    result = run(ATEN_CPU_CAPABILITY=isa)
    if result["info"]["cpu_isa"] != isa:
        pytest.skip(f"this processor has no {isa}")
    assert result["error"] < 1e-3
    assert result["fused error"] < 100  # units of the last place of the largest number


def test_devices_without_kernels():
    assert not has_kernel("ms_deform_attn", "mps")
