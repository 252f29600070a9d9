"""Routers and routed decoder layers of QR-DETR, against its equations written out image by image."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from detrx.layers import FFN, MultiheadAttention, SinePositionEmbedding
from detrx.modeling import (
    DecoderLayer,
    DeformableCrossAttention,
    DenseCrossAttention,
    LayerOutput,
    MultiScaleTokens,
    Queries,
    QueryGroup,
    Tokenizer,
)
from detrx.modeling.queries import QueryLayout
from detrx.projects.qr_detr import FixedRouter, QueryRouter, RoutedDecoderLayer
from detrx.projects.qr_detr.routed_layer import FFN_ON, REGROUP, ROUTER_READS, WRAPPED, Packing

BATCH, DIM, QUERIES = 4, 16, 6
SCHEMES = list(itertools.product(WRAPPED, REGROUP, FFN_ON))


def make_layer(dense: bool = False) -> DecoderLayer:
    cross_attn = DenseCrossAttention(DIM, 2) if dense else DeformableCrossAttention(DIM, 2, 2, 2)
    layer = DecoderLayer(MultiheadAttention(DIM, 2), cross_attn, FFN(DIM, 32), DIM)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer.eval()


def make_memory() -> MultiScaleTokens:
    maps = [torch.randn(BATCH, DIM, 6, 8), torch.randn(BATCH, DIM, 3, 4)]
    return Tokenizer(SinePositionEmbedding(DIM // 2), DIM, 2)(maps, None)


def make_group(name: str = "main", count: int = QUERIES, **options) -> QueryGroup:
    content, pos = torch.randn(BATCH, count, DIM), torch.randn(BATCH, count, DIM)
    return QueryGroup(name, content, pos, torch.rand(BATCH, count, 4) * 0.6 + 0.2, **options)


def ragged_mask(count: int = QUERIES) -> Tensor:
    """Images in which none, one, every second and all of the queries pass."""
    mask = torch.zeros(BATCH, count, dtype=torch.bool)
    mask[1, count // 2] = True
    mask[2, ::2] = True
    mask[3] = True
    return mask


def by_hand(layer: DecoderLayer, groups: list[QueryGroup], memory: MultiScaleTokens, keep: Tensor, scheme: tuple):
    """Eqs. 7-10 and that of EEQR_F, for each image by itself, on the passing queries themselves."""
    wrapped, regroup, ffn = scheme
    layout = QueryLayout(groups)
    queries, allowed = layout.queries(), visibility(layout)
    out = []
    for image, mask in enumerate(keep):
        rows, every = mask.nonzero()[:, 0], torch.arange(len(mask))
        pos, reference = queries.pos[image], queries.reference[image]
        tokens = replace(memory, tokens=memory.tokens[[image]], pos=memory.pos[[image]])

        def sa(x: Tensor, at: Tensor, pos=pos) -> Tensor:
            if not len(at):
                return x
            q, k, v = layer.self_attn.project(x[None], pos[None, at])
            logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            weights = logits.masked_fill(~allowed[at][:, at], -math.inf).softmax(-1)
            mixed = (weights @ v).transpose(1, 2).flatten(2)
            return layer.norm1(x + layer.self_attn.out_proj(mixed)[0])

        def ca(x: Tensor, at: Tensor, pos=pos, reference=reference, tokens=tokens) -> Tensor:
            if not len(at):
                return x
            read = layer.cross_attn(Queries(x[None], pos[None, at], reference[None, at]), tokens)
            return layer.norm2(x + read[0])

        def transform(x: Tensor) -> Tensor:
            return layer.norm3(x + layer.ffn(x))

        def put_back(x: Tensor, processed: Tensor, mask=mask, rows=rows) -> Tensor:
            x = x.clone()
            x[rows] = processed
            if regroup == "concat":
                places = layout.slices.values()
                x = torch.cat([torch.cat([x[place][mask[place]], x[place][~mask[place]]]) for place in places])
            return x

        x = queries.content[image]
        if wrapped == "self_attn":
            x = ca(put_back(x, sa(x[rows], rows)), every)
            if ffn == "modified":  # by cross-attention
                x = transform(x)
            moved = put_back(mask.float(), mask[rows].float()).bool()  # where the passing ones are now
            if ffn == "processed":
                x[moved] = transform(x[moved])
        else:
            x = sa(x, every) if wrapped == "cross_attn" else x
            processed = x[rows] if wrapped == "cross_attn" else sa(x[rows], rows)
            processed = ca(processed, rows)
            x = put_back(x, processed if ffn == "all" else transform(processed))
        out.append(transform(x) if ffn == "all" else x)
    return torch.stack(out)


def visibility(layout: QueryLayout) -> Tensor:
    """(N, N) bool, True where a query may see another one."""
    total = sum(place.stop - place.start for place in layout.slices.values())
    allowed = torch.zeros(total, total, dtype=torch.bool)
    for group in layout.groups:
        own = layout.slices[group.name]
        allowed[own, own] = True if group.blocked is None else ~group.blocked
        for other in group.sees:
            allowed[own, layout.slices[other]] = True
    return allowed


def run(
    layer: DecoderLayer, groups: list[QueryGroup], memory: MultiScaleTokens, keep: Tensor | float, scheme: tuple
) -> Tensor:
    wrapped, regroup, ffn = scheme
    routed = RoutedDecoderLayer(layer, FixedRouter(keep), wrapped, regroup, ffn).eval()
    layout = QueryLayout(groups)
    out = routed(layout.queries(), memory, layout, 0)
    return out.content if isinstance(out, LayerOutput) else out


def test_router_by_hand():
    """Eqs. 5 and 6."""
    router = QueryRouter(2)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 2.0]]))  # the columns of W_R: bypassing, passing
    queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-3.0, -4.0]]])
    passes, sigma = router(queries)  # scores (1, -1), (0, 2), (1, 1), (-3, -5)
    assert passes.tolist() == [[False, True, True, False]]  # the same score: it passes
    expected = [1 / (1 + math.exp(-score)) for score in (1.0, 2.0, 1.0, -3.0)]
    assert sigma[0].tolist() == pytest.approx(expected)
    router.pass_column = 0
    assert router(queries)[0].tolist() == [[True, False, True, True]]


def test_gather_scatter_and_concat_by_hand():
    """Eqs. 7 and 8, and what Table 5 compares them with."""
    content = torch.tensor([[10.0, 11.0, 12.0, 13.0], [20.0, 21.0, 22.0, 23.0]])[..., None]
    keep = torch.tensor([[False, True, False, True], [False, False, True, False]])
    queries = Queries(content, content + 0.5, None)
    packing = Packing.of(queries, keep, QueryLayout([QueryGroup("main", content, content, None)]))
    assert packing.queries.content[..., 0].tolist() == [[11, 13], [22, 0]]
    assert packing.queries.pos[..., 0].tolist() == [[11.5, 13.5], [22.5, 0]]
    assert packing.layout.groups[0].padding.tolist() == [[False, False], [False, True]]
    processed = -packing.queries.content
    scattered = packing.scatter(content, processed)
    assert scattered[..., 0].tolist() == [[10, -11, 12, -13], [20, 21, -22, 23]]
    concatenated = scattered.take_along_dim(packing.order()[..., None], dim=1)
    assert concatenated[..., 0].tolist() == [[-11, -13, 10, 12], [-22, 20, 21, 23]]
    assert packing.front().index[packing.valid].tolist() == [0, 1, 0]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layer_is_the_equations(scheme: tuple, dense: bool):
    layer, memory, group, keep = make_layer(dense), make_memory(), make_group(), ragged_mask()
    with torch.no_grad():
        found = run(layer, [group], memory, keep, scheme)
        torch.testing.assert_close(found, by_hand(layer, [group], memory, keep, scheme), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_are_routed_each_for_itself(scheme: tuple):
    """One group sees another, of which only passing queries are left; pairs inside of it are blocked."""
    layer, memory = make_layer(), make_memory()
    halves = torch.arange(4) // 2
    groups = [
        make_group(),
        make_group("other", 3),
        make_group("denoising", 4, sees=("main",), blocked=halves[:, None] != halves),
    ]
    keep = torch.cat([ragged_mask(), ragged_mask(3).flip(0), torch.rand(BATCH, 4) < 0.5], dim=1)
    keep[3, 9:] = torch.tensor([True, False, False, False])
    with torch.no_grad():
        found = run(layer, groups, memory, keep, scheme)
        torch.testing.assert_close(found, by_hand(layer, groups, memory, keep, scheme), atol=1e-5, rtol=1e-4)


def test_a_group_that_lets_no_query_pass_in_any_image():
    layer, memory = make_layer(), make_memory()
    groups = [make_group(), make_group("denoising", 4, sees=("main",))]
    for shut in (slice(0, QUERIES), slice(QUERIES, None)):
        keep = torch.ones(BATCH, QUERIES + 4, dtype=torch.bool)
        keep[:, shut] = False
        for wrapped in WRAPPED:
            scheme = (wrapped, "scatter", "processed")
            with torch.no_grad():
                found = run(layer, groups, memory, keep, scheme)
                torch.testing.assert_close(found, by_hand(layer, groups, memory, keep, scheme), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_forced_shut_the_wrapped_block_is_the_identity():
    layer, memory, group = make_layer(), make_memory(), make_group()
    layout = QueryLayout([group])
    queries = layout.queries()
    assert torch.equal(run(layer, [group], memory, 0.0, ("full", "scatter", "processed")), group.content)
    assert torch.equal(
        run(layer, [group], memory, 0.0, ("self_attn", "scatter", "processed")),
        layer.cross_attention(queries, memory, layout, 0),
    )
    assert torch.equal(
        run(layer, [group], memory, 0.0, ("cross_attn", "scatter", "processed")),
        layer.self_attention(queries, layout, 0),
    )
    assert torch.equal(
        run(layer, [group], memory, 0.0, ("full", "scatter", "all")), layer.transform(group.content, layout, 0)
    )


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES)
def test_forced_open_the_layer_is_the_plain_one(scheme: tuple):
    layer, memory = make_layer(), make_memory()
    groups = [make_group(), make_group("denoising", 4, sees=("main",), blocked=torch.eye(4).bool().flip(0))]
    layout = QueryLayout(groups)
    assert torch.equal(run(layer, groups, memory, 1.0, scheme), layer(layout.queries(), memory, layout, 0))


@torch.no_grad()
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_what_the_router_reads(wrapped: str):
    """Eqs. 9 and 10: the queries that enter the wrapped block, in EEQR_CA the self-attended ones; or the layer."""
    layer, memory, group = make_layer(), make_memory(), make_group()
    layout, seen = QueryLayout([group]), []
    attended = layer.self_attention(layout.queries(), layout, 0)
    router = FixedRouter(0.5)
    router.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    for reads in ROUTER_READS:
        routed = RoutedDecoderLayer(layer, router, wrapped, router_reads=reads, add_pos=False).eval()
        routed(layout.queries(), memory, layout, 0)
    expected = [group.content, attended if wrapped == "cross_attn" else group.content]
    assert all(torch.equal(found, wanted) for found, wanted in zip(seen, expected, strict=True))


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_skipped_queries_are_not_computed(wrapped: str):
    """Without a passing query nothing of the block runs at inference; in training it runs, for its gradients."""
    layer, memory, group = make_layer(), make_memory(), make_group()
    calls = []
    blocks = [layer.self_attn.out_proj, layer.cross_attn, layer.ffn]
    for name, block in zip(("sa", "ca", "ffn"), blocks, strict=True):
        block.register_forward_hook(lambda *_, name=name: calls.append(name))
    scheme = (wrapped, "scatter", "processed")
    with torch.no_grad():
        run(layer, [group], memory, 0.0, scheme)
    assert calls == {"full": [], "self_attn": ["ca"], "cross_attn": ["sa"]}[wrapped]
    calls.clear()
    out = run(layer, [group], memory, 0.0, scheme)
    assert calls == ["sa", "ca", "ffn"]
    out.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_where_an_image_lets_none_pass(scheme: tuple):
    """They are those of the equations, and finite."""
    layer, memory, group, keep = make_layer(), make_memory(), make_group(), ragged_mask()
    inputs = [group.content.requires_grad_(), *layer.parameters()]
    weights = torch.randn(BATCH, QUERIES, DIM)
    found, expected = (
        torch.autograd.grad((function(layer, [group], memory, keep, scheme) * weights).sum(), inputs)
        for function in (run, by_hand)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_keys_of_the_plain_layer_and_the_router_s():
    layer = make_layer()
    keys = RoutedDecoderLayer(make_layer(), QueryRouter(DIM)).state_dict().keys()
    assert keys - layer.state_dict().keys() == {"router.weight"} and layer.state_dict().keys() <= keys


def test_fixed_router():
    queries = torch.randn(2, 8, DIM)
    for part, count in ((0, 0), (0.5, 4), (1, 8), (0.3, 2)):
        assert FixedRouter(part)(queries)[0].sum(1).tolist() == [count] * 2
    with pytest.raises(ValueError, match=r"passing part must be in \[0, 1\], got 2"):
        FixedRouter(2)
    with pytest.raises(ValueError, match=r"mask must be bool and \(N,\) or \(B, N\), got torch.float32 \[3\]"):
        FixedRouter(torch.ones(3))
    with pytest.raises(ValueError, match=r"the mask is \[3\], but there are 2 images of 8 queries"):
        FixedRouter(torch.ones(3, dtype=torch.bool))(queries)


@pytest.mark.parametrize("key", ["wrapped", "regroup", "ffn", "router_reads"])
def test_wrong_values(key: str):
    with pytest.raises(ValueError, match=f"{key} must be one of .*, got 'all of it'"):
        RoutedDecoderLayer(make_layer(), QueryRouter(DIM), **{key: "all of it"})
    with pytest.raises(ValueError, match="pass_column must be 0 or 1, got 2"):
        QueryRouter(DIM, pass_column=2)
