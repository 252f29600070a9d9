"""What takes the place of the operators in exported graphs computes what they do."""

import pytest
import torch

from detrx import ops
from detrx.export import decompositions as replaced


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (5, 1), (5, 3), (4, 4)])
def test_moe(experts: int, k: int):
    logits, x = torch.randn(7, experts), torch.randn(7, 6)
    found, expected = replaced.moe_route(logits, k), ops.moe_route(logits, k)
    torch.testing.assert_close(found[0], expected.weights)
    assert all(torch.equal(a, b) for a, b in zip(found[1:], expected[1:], strict=True))
    empty = replaced.moe_route(logits.index_fill(1, torch.tensor([0]), -1e9), 1)
    assert int(empty[2][0]) == (0 if experts > 1 else 7)
    table = replaced.decompositions([])
    places = expected.order, expected.place
    rows = table[torch.ops.detrx.moe_dispatch](x, *places)
    assert torch.equal(rows, ops.moe_dispatch(x, *places))
    combined = table[torch.ops.detrx.moe_combine](rows, found[0], *places)
    torch.testing.assert_close(combined, ops.moe_combine(rows, expected.weights, *places))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("ends", [[3, 3, 7], [0, 0, 7], [7, 7, 7], [2, 5, 7]])
def test_expert_linear(ends: list[int], relu: bool):
    x, weight, bias = torch.randn(7, 5), torch.randn(3, 5, 4), torch.randn(3, 4)
    rows_of = torch.tensor(ends, dtype=torch.int32)
    expected = ops.expert_linear(x, weight, bias, rows_of, relu)
    torch.testing.assert_close(replaced.expert_linear(x, weight, bias, rows_of, relu), expected)


@pytest.mark.parametrize("capacity", [None, 5, 8])
def test_query_routing(capacity: int | None):
    keep = torch.rand(3, 8) > 0.5
    keep[0], keep[1] = False, torch.arange(8) < 5
    keep[2, :4] = False
    index, valid = replaced.query_route(keep, capacity)
    expected = ops.query_route(keep, 8 if capacity is None else capacity)
    assert torch.equal(index, expected.index) and torch.equal(valid, expected.valid)
    x, mask = torch.randn(3, 8, 2, 3), torch.rand(3, 8) > 0.5
    packed = replaced.query_gather([x, mask], index, valid)
    for found, wanted in zip(packed, ops.query_gather([x, mask], expected)[0], strict=True):
        assert torch.equal(found, wanted)
    rows = torch.randn(packed[0].shape)
    (merged,) = replaced.query_scatter([x], [rows], index, valid)
    assert torch.equal(merged, ops.query_scatter(x, rows, *expected))


def test_every_operator_of_inference_has_one():
    covered = {str(operator).removeprefix("detrx.") for operator in replaced.decompositions([(2, 3)])}
    assert covered == {name for name in ops.operators() if not name.endswith(("_backward", "_unpack", "_clear"))}
