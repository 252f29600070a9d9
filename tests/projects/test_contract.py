"""The contract of training methods: nothing of them is left at inference, and the main group does not notice them."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrx.analysis.flops import count_flops
from detrx.model_zoo import config_root
from detrx.modeling import Branch, DetectionTransformer, Step
from tests.modeling.small import make_model
from tests.projects.contract import (
    METHODS,
    ONCE,
    PAIRS,
    REFUSED,
    Inference,
    detector,
    make_batch,
    switch_on,
    training_step,
    with_and_without,
)

CONFIGS = sorted(
    f"{path.parents[1].name}/{path.name}"
    for path in config_root().parent.glob("projects/*/configs/*_digits.py")
    if not path.name.startswith("baseline_")
)


class Recorder(TorchDispatchMode):
    """The operations that run, with the shapes they get, and the tensors that they read."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []
        self.read: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.operations.append((str(func), *(tuple(tensor.shape) for tensor in tensors)))
        self.read |= {tensor.untyped_storage().data_ptr() for tensor in tensors}
        return func(*args, **(kwargs or {}))


def without_methods(model: DetectionTransformer) -> DetectionTransformer:
    plain = copy.deepcopy(model)
    plain.methods = nn.ModuleList()
    return plain


def assert_same_inference(model: DetectionTransformer, plain: DetectionTransformer) -> None:
    """Outputs, operations with their shapes, and parameters in use."""
    model.eval(), plain.eval()
    with torch.no_grad():
        for parameter in model.methods.parameters():
            parameter.fill_(float("nan"))
    images = torch.randn(1, 3, 64, 96)
    results, records = [], []
    for each in (model, plain):
        with torch.no_grad(), Recorder() as record:
            results.append(each.predict(images, None))
        records.append(record)
    found, expected = results
    assert found.keys() == expected.keys()
    for group in expected:
        assert expected[group].logits.isfinite().all()
        assert torch.equal(found[group].logits, expected[group].logits)
        assert torch.equal(found[group].boxes, expected[group].boxes)
    assert records[0].operations == records[1].operations
    read = [
        {name for name, parameter in each.named_parameters() if parameter.untyped_storage().data_ptr() in record.read}
        for each, record in zip((model, plain), records, strict=True)
    ]
    assert read[0] == read[1] and read[0] and not any(name.startswith("methods.") for name in read[0])


def exported(model: DetectionTransformer, images: Tensor) -> list[str]:
    """The operations of the exported graph, and the parameters that they use."""
    program = torch.export.export(Inference(model.eval()), (images,))
    names = program.graph_signature.inputs_to_parameters
    used = [names[node.name] for node in program.graph.nodes if node.name in names and node.users]
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"] + used


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_nothing_of_it_is_left_at_inference(method: str, name: str):
    model, plain = with_and_without(method, name)
    new = model.state_dict().keys() - plain.state_dict().keys()
    assert all(key.startswith(("methods.", *METHODS[method].remains)) for key in new)
    assert_same_inference(model, without_methods(model) if METHODS[method].remains else without_methods(plain))


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_of_a_config_s_methods_is_left_at_inference(config: str):
    model = make_model(config)
    assert len(model.methods)
    assert_same_inference(model, without_methods(model))


@torch.no_grad()
@pytest.mark.parametrize(("method", "name"), ONCE)
def test_exported_graph_and_flops_are_those_of_the_detector(method: str, name: str):
    model, images = with_and_without(method, name)[0].eval(), torch.randn(1, 3, 64, 96)
    plain = without_methods(model)
    assert exported(model, images) == exported(plain, images)
    assert count_flops(model, images).total() == count_flops(plain, images).total() > 0


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_main_group_does_not_notice_it(method: str, name: str):
    model, plain = with_and_without(method, name)
    added, batch = model.methods[-1], make_batch()
    with torch.no_grad():
        expected, found = training_step(plain, batch)[0], training_step(model, batch)[0]
    for group in expected:
        torch.testing.assert_close(found[group].logits, expected[group].logits)
        torch.testing.assert_close(found[group].boxes, expected[group].boxes)

    disturb(added)
    changed = training_step(model, batch)[0]
    assert changed.keys() == found.keys()
    for group in expected:
        assert torch.equal(changed[group].logits, found[group].logits), group
        assert torch.equal(changed[group].boxes, found[group].boxes), group
    for group in found.keys() - expected.keys():
        assert not torch.allclose(changed[group].logits, found[group].logits), group

    sum(changed[group].logits.sum() + changed[group].boxes.sum() for group in expected).backward()
    own = [key for key, p in added.named_parameters() if p.grad is not None and p.grad.any()]
    assert not own, "the main group depends on parameters of the method"


def disturb(method: nn.Module) -> None:
    """Other parameters, and other queries of its groups."""
    generator = torch.Generator().manual_seed(1)
    branches = method.branches

    def disturbed(step: Step) -> Sequence[Branch]:
        return [
            branch
            if branch.group is None
            else replace(
                branch,
                group=replace(
                    branch.group,
                    content=branch.group.content + torch.randn(branch.group.content.shape, generator=generator),
                    reference=None if branch.group.reference is None else 1 - branch.group.reference,
                ),
            )
            for branch in branches(step)
        ]

    method.branches = disturbed
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(("method", "name"), REFUSED)
def test_detectors_it_does_not_work_for(method: str, name: str):
    added = METHODS[method].make()
    with pytest.raises(ValueError, match=f"{type(added).__name__} .*{METHODS[method].refused[name]}"):
        switch_on(detector(name, type(added)), added)


@pytest.mark.parametrize(
    ("name", "methods", "taken"),
    [
        ("deformable_detr_plus_plus", ["mr_detr", "mr_detr"], "MrDETR .* adds .*'instruction'"),
        ("deformable_detr_plus_plus", ["hybrid_branch", "hybrid_branch"], "HybridBranch .* adds .*'hybrid'"),
        ("dn_detr", ["contrastive_denoising"], "ContrastiveDenoising .* adds .*'denoising'"),
        ("detr", ["encoder_supervision"], "EncoderSupervision .* adds .*'encoder'"),
    ],
)
def test_methods_that_do_not_go_together(name: str, methods: list[str], taken: str):
    """Two that bring predictions of the same name."""
    model = switch_on(detector(name), *(METHODS[method].make() for method in methods))
    with pytest.raises(ValueError, match=taken):
        training_step(model, make_batch())


@pytest.mark.parametrize("methods", [None, "MrDETR", ["MrDETR"], [nn.Identity()], METHODS["mr_detr"].make()])
def test_what_is_no_list_of_methods(methods: object):
    model = detector("deformable_detr_plus_plus")
    names = ("backbone", "neck", "tokenizer", "encoder", "query_source", "decoder", "criterion", "postprocess")
    parts = {name: getattr(model, name) for name in names}
    with pytest.raises(ValueError, match="methods must be a list of methods"):
        DetectionTransformer(**parts, methods=methods)
