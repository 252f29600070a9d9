"""The CUDA kernels of deformable attention against the CPU ones, on a GPU (`make gpu-check`) and emulated."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from detrx.ops import ms_deform_attn, ms_deform_attn_fused
from tests.cuda_on_cpu.emulation import EmulationError
from tests.ops.places import CPU, Place, assert_near

KINDS = ["unfused", "points", "boxes"]  # the last two: the fused operator, by its reference
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
LEVELS = [(7, 9), (4, 5), (1, 3)]


def make_inputs(
    kind: str,
    channels: int,
    dtype: torch.dtype,
    *,
    queries: int = 70,
    batch: int = 2,
    heads: int = 3,
    points: int = 4,
    levels: Sequence[tuple[int, int]] = LEVELS,
    spread: float = 0.3,
    reference_dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Floating-point arguments and a direction for the gradient, in float64, all of them numbers of `dtype`.

    The gradient of a location jumps at the borders between pixels. No point is near one, so that the error of computing
    a point's place, in whatever precision, does not decide what the gradient is.
    """
    shape = (batch, queries, heads, len(levels), points)

    def rounded(tensor: Tensor, to: torch.dtype = dtype) -> Tensor:
        return tensor.to(to).double()

    value = rounded(torch.randn(batch, sum(h * w for h, w in levels), heads, channels))
    weights = rounded(torch.randn(shape))
    direction = rounded(torch.randn(batch, queries, heads * channels))
    if kind == "unfused":
        weights = rounded(weights.flatten(3).softmax(-1).view(shape))
        locations = away_from_borders(
            lambda: rounded(torch.rand(*shape, 2) * (1 + 2 * spread) - spread), lambda drawn: drawn, levels
        )
        return [value, locations, weights, direction]
    reference = rounded(torch.rand(batch, queries, len(levels), 2 if kind == "points" else 4), reference_dtype or dtype)
    scale = (1 if kind == "points" else points) * (1 + spread)
    offsets = away_from_borders(
        lambda: rounded(scale * torch.randn(*shape, 2)), lambda drawn: fused_locations(reference, drawn, levels), levels
    )
    return [value, reference, offsets, weights, direction]


def fused_locations(reference: Tensor, offsets: Tensor, levels: Sequence[tuple[int, int]]) -> Tensor:
    """Sampling locations (B, Q, M, L, P, 2) of `ms_deform_attn_fused`."""
    centre = reference[:, :, None, :, None, :2]
    if reference.shape[-1] == 2:
        sizes = torch.tensor([(w, h) for h, w in levels], dtype=torch.float64).view(-1, 1, 2)
        return centre + offsets / sizes.clamp(min=1)
    return centre + offsets / offsets.shape[-2] * reference[:, :, None, :, None, 2:] / 2


def away_from_borders(
    draw: Callable[[], Tensor], locate: Callable[[Tensor], Tensor], levels: Sequence[tuple[int, int]]
) -> Tensor:
    """What `draw` gives, drawn again where `locate` says that a point lies within 1/1000 of a border in its level."""
    sizes = torch.tensor([(w, h) for h, w in levels], dtype=torch.float64).view(-1, 1, 2)
    drawn = draw()
    for _ in range(100):
        pixels = locate(drawn) * sizes - 0.5
        near = ((pixels - pixels.round()).abs() < 1e-3) & (pixels > -1.5) & (pixels < sizes + 0.5)
        near = near.any(-1, keepdim=True)
        if not near.any():
            return drawn
        drawn = torch.where(near, draw(), drawn)
    raise AssertionError("all points lie on borders")


def run(
    kind: str,
    inputs: list[Tensor],
    dtype: torch.dtype,
    place: Place,
    *,
    levels: Sequence[tuple[int, int]] = LEVELS,
    reference_dtype: torch.dtype | None = None,
    arrange: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    **kernels: int,
) -> list[Tensor]:
    """Output and gradients of all arguments but the direction, computed in `dtype` at `place`."""
    operator = ms_deform_attn if kind == "unfused" else ms_deform_attn_fused
    with place.kernels(**kernels):
        shapes = torch.tensor(levels, dtype=torch.int64).view(-1, 2)
        areas = shapes.prod(1)
        shapes, starts = place.put(shapes), place.put(areas.cumsum(0) - areas)
        *leaves, direction = [arrange(place.put(x, dtype)) for x in inputs]
        if reference_dtype is not None:
            leaves[1] = place.put(inputs[1], reference_dtype)
        leaves = [x.requires_grad_() for x in leaves]
        output = operator(leaves[0], shapes, starts, *leaves[1:])
        return [output.detach(), *torch.autograd.grad(output, leaves, direction)]


def assert_matches_cpu(
    place: Place,
    kind: str,
    dtype: torch.dtype,
    channels: int,
    *,
    levels: Sequence[tuple[int, int]] = LEVELS,
    reference_dtype: torch.dtype | None = None,
    max_blocks: int = 0,
    **sizes: float,
) -> None:
    """Both compute with the same numbers: all that remains is the error of the computation in `dtype`."""
    inputs = make_inputs(kind, channels, dtype, levels=levels, reference_dtype=reference_dtype, **sizes)
    expected = run(kind, inputs, torch.float64, CPU, levels=levels)
    ours = run(kind, inputs, dtype, place, levels=levels, reference_dtype=reference_dtype, max_blocks=max_blocks)
    assert_near(ours, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 32, 33, 64, 100])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_matches_cpu(cuda, kind, channels, dtype):
    assert_matches_cpu(cuda, kind, dtype, channels, queries=11 if cuda.emulated else 70)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("points", [1, 3, 37])
@pytest.mark.parametrize("queries", [1, 9])
def test_any_points_and_queries(cuda, kind, points, queries):
    for channels in (5, 16, 32):
        for dtype in (torch.float32, torch.bfloat16):
            assert_matches_cpu(cuda, kind, dtype, channels, points=points, queries=queries, batch=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "levels",
    [
        [(1, 1)],
        [(5, 6), (2, 1)],
        [(3, 3), (0, 4), (2, 2), (1, 1), (9, 1)],
        [(0, 4), (3, 3)],
        [(3, 3), (4, 0)],
        [(0, 0)],
    ],
    ids=str,
)
def test_any_levels(cuda, kind, levels):
    for channels in (5, 32):
        assert_matches_cpu(cuda, kind, torch.float32, channels, levels=levels, queries=9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [[(9, 10), (3, 17), (1, 1)], [(0, 5), (8, 8), (7, 3), (2, 0)]], ids=str)
def test_as_many_queries_as_tokens(cuda, kind, levels):
    """As in an encoder: squares of 8 x 8 tokens are worked on together, and narrower ones at the borders."""
    tokens = sum(h * w for h, w in levels)
    for channels in (5, 32):
        for dtype in (torch.float32, torch.bfloat16):
            assert_matches_cpu(cuda, kind, dtype, channels, levels=levels, queries=tokens, points=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0.0, 5.0, 1e4])
def test_points_far_outside(cuda, kind, spread):
    for dtype in (torch.float32, torch.float16):
        assert_matches_cpu(cuda, kind, dtype, 32, spread=spread, queries=9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_points_on_the_borders_of_pixels(cuda, kind, dtype):
    """Sizes are powers of two and points are few bits long: every dtype places a point exactly, on a border."""
    levels = [(8, 4), (2, 8)]
    inputs = make_inputs(kind, 32, dtype, levels=levels, queries=9)
    sizes = torch.tensor([(w, h) for h, w in levels], dtype=torch.float64).view(-1, 1, 2)
    pixels = torch.randint(-1, 9, (2, 9, 3, 2, 4, 2)).double()
    if kind == "unfused":
        inputs[1] = (pixels + 0.5) / sizes
    else:
        inputs[1].fill_(0.5)
        scale = sizes if kind == "points" else 4 * 4  # of a box of half the image, for 4 points
        inputs[2] = ((pixels + 0.5) / sizes - 0.5) * scale
    expected = run(kind, inputs, torch.float64, CPU, levels=levels)
    assert_near(run(kind, inputs, dtype, cuda, levels=levels), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [5, 16, 32])
def test_points_that_are_not_finite(cuda, kind, dtype, channels):
    """They contribute nothing, and nothing is read where they would be."""
    inputs = make_inputs(kind, channels, dtype, queries=9)
    inputs[-3][0, ::2, 1] = float("nan")
    inputs[-3][1, 1::2, :, 0, :2, 0] = float("inf")
    expected = run(kind, inputs, torch.float64, CPU)
    assert_near(run(kind, inputs, dtype, cuda), expected, TOLERANCE[dtype])
    assert expected[0].isfinite().all()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_that_is_not_finite(cuda, dtype, deterministic):
    """It reaches the corners of its points in the gradient of the values, and nothing beside them."""
    sizes = {"queries": 64, "heads": 1, "points": 2, "levels": [(4, 5), (3, 3)]}
    inputs = make_inputs("unfused", 32, dtype, **sizes)
    _, locations, weights, _ = inputs
    locations[:, ::9] = torch.tensor([[0.01, 0.01], [0.99, 0.99]], dtype=torch.float64)  # one corner in the map each
    weights[:, ::9] = float("nan")
    expected = run("unfused", inputs, torch.float64, CPU, levels=sizes["levels"])
    torch.use_deterministic_algorithms(deterministic)
    try:
        ours = run("unfused", inputs, dtype, cuda, levels=sizes["levels"])
    finally:
        torch.use_deterministic_algorithms(False)
    assert expected[1].isnan().any() and not expected[1].isnan().all()
    assert torch.equal(ours[1].isnan().cpu(), expected[1].isnan())


@pytest.mark.parametrize("kind", ["points", "boxes"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_reference_beside_16_bits(cuda, kind, dtype):
    for channels in (5, 32):
        assert_matches_cpu(cuda, kind, dtype, channels, reference_dtype=torch.float32, queries=9)


def test_reference_without_gradient(cuda):
    inputs = make_inputs("boxes", 32, torch.float32, queries=9)
    expected = run("boxes", inputs, torch.float32, cuda)
    with cuda.kernels():
        shapes = torch.tensor(LEVELS)
        value, reference, offsets, logits, direction = [cuda.put(x, torch.float32) for x in inputs]
        leaves = [x.requires_grad_() for x in (value, offsets, logits)]
        output = ms_deform_attn_fused(
            value, cuda.put(shapes), cuda.put(torch.tensor([0, 63, 83])), reference, offsets, logits
        )
        gradients = torch.autograd.grad(output, leaves, direction)
    assert_near(gradients, [expected[i] for i in (1, 3, 4)], 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("channels", [5, 32])
def test_deterministic_mode(cuda, kind, dtype, channels):
    sizes = {"queries": 40 if cuda.emulated else 1000}
    inputs = make_inputs(kind, channels, dtype, **sizes)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(kind, inputs, dtype, cuda) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert_near(first, run(kind, inputs, torch.float64, CPU), TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_slices_that_begin_anywhere(cuda, kind, dtype):
    inputs = make_inputs(kind, 32, dtype, queries=9)

    def shifted(tensor: Tensor) -> Tensor:
        return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor)

    def transposed(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)

    expected = run(kind, inputs, torch.float64, CPU)
    for arrange in (shifted, transposed):
        assert_near(run(kind, inputs, dtype, cuda, arrange=arrange), expected, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes", [{"batch": 0}, {"queries": 0}, {"points": 0}, {"heads": 0}, {"channels": 0}, {"levels": []}], ids=str
)
def test_empty_inputs(cuda, kind, sizes):
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            assert_matches_cpu(cuda, kind, torch.float32, **{"channels": 16, "queries": 3, **sizes})
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_of_a_model(cuda_once, kind, dtype):
    emulated = cuda_once.emulated
    levels = [(16, 20), (8, 10), (4, 5), (2, 3)] if emulated else [(100, 134), (50, 67), (25, 34), (13, 17)]
    sizes = {"heads": 8, "queries": 30 if emulated else 900, "spread": 0.1}
    for channels in (16, 32, 64):
        assert_matches_cpu(cuda_once, kind, dtype, channels, levels=levels, **sizes)


# What only the emulation can do: few blocks, so that each works on many items, and assertions, after which a process
# cannot use its GPU any more.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_blocks", [1, 2, 3])
def test_more_items_than_blocks(emulated, kind, max_blocks):
    for channels in (7, 16, 32, 64):
        for dtype in (torch.float32, torch.float16, torch.float64):
            assert_matches_cpu(emulated, kind, dtype, channels, queries=23, max_blocks=max_blocks)


def test_more_items_than_blocks_in_deterministic_mode(emulated):
    torch.use_deterministic_algorithms(True)
    try:
        for channels in (7, 32):
            assert_matches_cpu(emulated, "boxes", torch.float32, channels, queries=23, max_blocks=2)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "shapes,starts,message",
    [
        ([[7, 9], [4, 6]], [0, 63], "do not hold as many tokens as value"),
        ([[7, 9], [4, 4]], [0, 63], "do not hold as many tokens as value"),
        ([[7, 9], [4, 5]], [0, 64], "level_start_index is not the number of tokens"),
        ([[7, 9], [4, 5]], [0, 0], "level_start_index is not the number of tokens"),
        ([[7, 9], [4, 5]], [1, 63], "level_start_index is not the number of tokens"),
        ([[-7, -9], [4, 5]], [0, 63], "spatial_shapes has a negative or too large number"),
        ([[7, 9], [2**40, 0]], [0, 63], "spatial_shapes has a negative or too large number"),
    ],
)
def test_levels_that_do_not_fit(emulated, shapes, starts, message):
    with emulated.kernels(), pytest.raises(EmulationError, match=message):
        ms_deform_attn(
            torch.randn(1, 83, 2, 16),
            torch.tensor(shapes),
            torch.tensor(starts),
            torch.rand(1, 5, 2, 2, 3, 2),
            torch.rand(1, 5, 2, 2, 3),
        )


# What only a GPU can do.


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_current_stream(gpu, kind):
    inputs = make_inputs(kind, 32, torch.float32)
    expected = run(kind, inputs, torch.float32, gpu)
    with torch.cuda.stream(torch.cuda.Stream()):
        assert_near(run(kind, inputs, torch.float32, gpu), expected, 1e-5)


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(gpu):
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
