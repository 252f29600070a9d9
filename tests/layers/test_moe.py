"""detrx.layers.MoEFFN."""

import pytest
import torch
from torch import Tensor, nn

from detrx.layers import FFN, MoEFFN
from detrx.ops import query_gather, query_scatter


def expert(moe: MoEFFN, index: int, x: Tensor) -> Tensor:
    hidden = (x @ moe.weight1[index] + moe.bias1[index]).relu()
    return hidden @ moe.weight2[index] + moe.bias2[index]


def masked_loop(moe: MoEFFN, x: Tensor, gate: int = 0) -> Tensor:
    """What MoEFFN computes, expert by expert with boolean masks."""
    probabilities, experts = moe.gates[gate](x).softmax(-1).topk(moe.top_k)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    output = torch.zeros_like(x)
    for index in range(len(moe.weight1)):
        weight = (probabilities * (experts == index)).sum(-1, keepdim=True)
        output = output + weight * expert(moe, index, x)
    return output


def output_and_gradients(function, module: nn.Module, x: Tensor) -> list[Tensor]:
    output = function(x)
    output = output[0] if isinstance(output, tuple) else output
    inputs = (x, *module.parameters())
    return [output, *torch.autograd.grad(output.square().sum(), inputs, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("experts,k", [(1, 1), (2, 1), (4, 2), (8, 2), (5, 5), (20, 8)])
def test_matches_a_loop_over_the_experts(experts, k):
    moe = MoEFFN(12, 20, experts, k).double()
    x = torch.randn(40, 12, dtype=torch.float64, requires_grad=True)
    ours = output_and_gradients(moe, moe, x)
    expected = output_and_gradients(lambda x: masked_loop(moe, x), moe, x)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_all_experts_are_the_dense_mixture():
    moe = MoEFFN(6, 10, 4, top_k=4)
    x = torch.randn(3, 7, 6)
    mixture = moe.gates[0](x).softmax(-1)
    expected = sum(mixture[..., e : e + 1] * expert(moe, e, x) for e in range(4))
    torch.testing.assert_close(moe(x)[0], expected)


def test_one_expert_is_an_ffn():
    moe, ffn = MoEFFN(8, 16, num_experts=1, top_k=1), FFN(8, 16)
    with torch.no_grad():
        for linear, weight, bias in ((ffn.linear1, moe.weight1, moe.bias1), (ffn.linear2, moe.weight2, moe.bias2)):
            linear.weight.copy_(weight[0].t())
            linear.bias.copy_(bias[0])
    x = torch.randn(2, 9, 8)
    torch.testing.assert_close(moe(x)[0], ffn(x))


def test_experts_start_as_an_ffn_does():
    torch.manual_seed(0)
    ffn, moe = FFN(64, 256), MoEFFN(64, 256, 3)
    for linear, weight, bias in ((ffn.linear1, moe.weight1, moe.bias1), (ffn.linear2, moe.weight2, moe.bias2)):
        for index in range(3):
            for ours, other in ((weight[index], linear.weight), (bias[index], linear.bias)):
                torch.testing.assert_close(ours.std(), other.std(), rtol=0.2, atol=0)
                torch.testing.assert_close(ours.abs().max(), other.abs().max(), rtol=0.1, atol=0)


def test_gates_share_the_experts():
    moe = MoEFFN(6, 10, 4, top_k=2, num_gates=2).double()
    x = torch.randn(15, 6, dtype=torch.float64)
    outputs = [moe(x, gate=gate)[0] for gate in range(2)]
    for gate in range(2):
        torch.testing.assert_close(outputs[gate], masked_loop(moe, x, gate))
    assert not torch.allclose(*outputs)
    outputs[1].sum().backward()
    assert moe.gates[0].weight.grad is None and moe.gates[1].weight.grad.any()
    for gate in (-1, 2):
        with pytest.raises(ValueError, match=f"gate is {gate}, expected 0 to 1"):
            moe(x, gate=gate)


def test_tokens_with_equal_logits_take_the_first_experts():
    moe = MoEFFN(6, 10, 4, top_k=2)
    nn.init.zeros_(moe.gates[0].weight)
    x = torch.randn(10, 6, requires_grad=True)
    output, load = moe(x)
    torch.testing.assert_close(output, (expert(moe, 0, x) + expert(moe, 1, x)) / 2)
    assert load.counts.tolist() == [10, 10, 0, 0]
    output.sum().backward()
    assert moe.weight1.grad[:2].any() and not moe.weight1.grad[2:].any()  # experts without tokens


@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6)])
def test_no_tokens(shape):
    moe = MoEFFN(6, 10, 4)
    output, load = moe(torch.randn(shape))
    assert output.shape == shape
    assert load.counts.tolist() == [0] * 4 and load.mean_probability.tolist() == [0] * 4
    (output.sum() + load.balancing_loss()).backward()
    assert all(not p.grad.any() for p in moe.parameters())


def test_load_statistics():
    moe = MoEFFN(6, 10, 4, top_k=2)
    x = torch.randn(5, 8, 6)
    load = moe(x)[1]
    logits = moe.gates[0](x.view(40, 6))
    assert torch.equal(load.counts, logits.topk(2).indices.flatten().bincount(minlength=4))
    torch.testing.assert_close(load.mean_probability, logits.softmax(1).mean(0))
    expected = 4 * (load.counts / 80 * load.mean_probability).sum()
    torch.testing.assert_close(load.balancing_loss(), expected)
    load.balancing_loss().backward()
    assert moe.gates[0].weight.grad.any() and moe.weight1.grad is None


def test_balancing_loss_is_least_for_a_uniform_load():
    moe = MoEFFN(4, 4, 4, top_k=1)
    with torch.no_grad():
        moe.gates[0].weight.copy_(10 * torch.eye(4))
    assert moe(torch.eye(4))[1].balancing_loss().item() == pytest.approx(1, abs=1e-3)
    assert moe(torch.eye(4)[:1])[1].balancing_loss().item() == pytest.approx(4, abs=1e-2)


def test_dropout_only_in_training():
    moe = MoEFFN(6, 40, 4, dropout=0.5)
    x = torch.randn(10, 6)
    assert not torch.equal(moe(x)[0], moe(x)[0])
    moe.eval()
    assert torch.equal(moe(x)[0], moe(x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    moe = MoEFFN(16, 32, 4)
    with torch.no_grad():
        moe.gates[0].weight.mul_(20)  # the choice of experts survives the rounding
    x = torch.randn(50, 16).to(dtype)
    expected = moe(x.float())[0]
    with torch.autocast("cpu", dtype=dtype):
        mixed = moe(x.float())[0]
    output = moe.to(dtype)(x)[0]
    assert output.dtype == mixed.dtype == dtype
    for ours in (output, mixed):
        error = (ours.float() - expected).abs().flatten()
        assert error.quantile(0.9) < 20 * torch.finfo(dtype).eps


def test_autocast_trains_float32_parameters():
    moe = MoEFFN(16, 32, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moe(torch.randn(20, 16))[0].float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in moe.parameters())


def test_impossible_numbers_of_experts():
    for experts, k in ((4, 5), (4, 0), (20, 9), (257, 2)):
        with pytest.raises(ValueError, match=f"top_k is {k} and num_experts {experts}"):
            MoEFFN(4, 4, experts, k)


def test_compile_without_graph_breaks():
    moe = MoEFFN(12, 20, 4)
    x = torch.randn(3, 5, 12, requires_grad=True)
    compiled = torch.compile(lambda x: moe(x)[0], fullgraph=True, backend="aot_eager")
    for a, b in zip(output_and_gradients(compiled, moe, x), output_and_gradients(moe, moe, x), strict=True):
        torch.testing.assert_close(a, b)
    output, load = torch.compile(moe, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(output, moe(x)[0])
    torch.testing.assert_close(load.balancing_loss(), moe(x)[1].balancing_loss())


@pytest.mark.parametrize("strict", [False, True])
def test_export_for_any_number_of_tokens(strict, tmp_path):
    moe = MoEFFN(12, 20, 4).eval()
    dynamic = ({1: torch.export.Dim("tokens", min=2, max=1000)},)
    with torch.no_grad():
        program = torch.export.export(moe, (torch.randn(3, 5, 12),), dynamic_shapes=dynamic, strict=strict)
    torch.export.save(program, tmp_path / "moe.pt2")
    exported = torch.export.load(tmp_path / "moe.pt2").module()
    for tokens in (2, 37):
        x = torch.randn(3, tokens, 12)
        (output, load), (expected, expected_load) = exported(x), moe(x)
        torch.testing.assert_close(output, expected)
        assert torch.equal(load.counts, expected_load.counts)
        torch.testing.assert_close(load.balancing_loss(), expected_load.balancing_loss())


class Routed(nn.Module):
    """The MoE on some of the queries, whose number depends on the mask."""

    def __init__(self):
        super().__init__()
        self.moe = MoEFFN(12, 20, 4)

    def forward(self, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        packed, index, valid = query_gather(x, keep)
        packed, load = self.moe(packed)
        return query_scatter(x, packed, index, valid), load.balancing_loss()


def test_routed_queries_in_one_graph():
    module, x = Routed(), torch.randn(2, 9, 12)
    keep = torch.arange(18).view(2, 9) % 3 == 0
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(module, (x, keep)).module()
    for mask in (keep, ~keep, torch.ones_like(keep)):
        for function in (compiled, exported):
            for ours, expected in zip(function(x, mask), module(x, mask), strict=True):
                torch.testing.assert_close(ours, expected)
