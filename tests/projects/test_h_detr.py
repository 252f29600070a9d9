"""Hybrid matching: what the schemes supervise, and their errors."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from detrx import model_zoo
from detrx.d2.config import instantiate
from detrx.modeling import (
    ContrastiveDenoising,
    Method,
    Predictions,
    Targets,
    TopKAssigner,
)
from detrx.projects.h_detr import HybridBranch, HybridEpoch, HybridLayer
from tests.modeling.small import make_model
from tests.projects.contract import losses_of, make_batch, switch_on, training_step

TWO_STAGE = "deformable_detr/deformable_detr_digits.py"
DINO = "dino/dino_digits.py"
ALIGN = "align_detr/align_detr_digits.py"


def all_schemes() -> list[Method]:
    return [HybridBranch(num_queries=12, copies=3), HybridEpoch(max_iter=10, copies=2), HybridLayer(1, copies=3)]


@pytest.mark.parametrize("name", [TWO_STAGE, ALIGN, "detr/detr_digits.py"])
def test_all_schemes_at_once(name: str):
    """What is supervised of the main queries is supervised of the branch, and every parameter learns."""
    model = switch_on(make_model(name), *all_schemes())
    for iteration in (0, 9):
        model.zero_grad()
        losses = losses_of(model, make_batch(), iteration)
        sum(losses.values()).backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
        assert {key.removesuffix("_one2many") for key in losses if key.endswith("_one2many")} == {
            key for key in losses if not any(part in key for part in ("_enc", "_dn", "_one2many"))
        }


def test_branch_starts_from_the_next_proposals():
    model = switch_on(make_model(TWO_STAGE), HybridBranch(num_queries=12), HybridBranch(num_queries=7))
    memory = model.encode(model.preprocess(make_batch()))
    groups, _ = model.query_source.groups(memory, [method.further for method in model.methods])
    proposals = model.query_source.propose(memory)
    ranked = proposals.take(proposals.logits.amax(-1).argsort(descending=True)[:, :29]).boxes
    for group, reference in zip(groups, ranked.split([10, 12, 7], dim=1), strict=True):
        torch.testing.assert_close(group.reference, reference)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_repeated_matching_is_the_cheapest(copies: int):
    model = switch_on(make_model(TWO_STAGE), HybridBranch(num_queries=7, copies=copies))
    (supervision,) = model.methods[0].one_to_many(model.criterion.supervisions)
    predictions = Predictions(torch.randn(2, 1, 7, 10), torch.rand(2, 1, 7, 4) * 0.5 + 0.1)
    targets = Targets(torch.tensor([[1, 4]]), torch.rand(1, 2, 4) * 0.5 + 0.1, (2,), (0,))
    pairs = supervision.assigner.assign(predictions, targets)
    costs = supervision.assigner.cost(predictions, targets)[:, 0].numpy()
    repeated = [box for box in range(2) for _ in range(copies)]
    for layer, cost in enumerate(costs):
        here = pairs.layer == layer
        assert torch.bincount(pairs.truth[here]).tolist() == [copies, copies]
        assert len(pairs.query[here].unique()) == 2 * copies
        cheapest = min(
            cost[list(queries), repeated].sum() for queries in itertools.permutations(range(7), len(repeated))
        )
        assert np.isclose(cost[pairs.query[here], pairs.truth[here]].sum(), cheapest, rtol=1e-5)


def test_losses_of_the_branch_are_those_of_repeated_ground_truth():
    model, batch = (
        switch_on(make_model(TWO_STAGE), HybridBranch(num_queries=40, copies=3, weight=0.5)),
        make_batch(2, 2),
    )
    predictions, supervisions = training_step(model, batch)
    targets = Targets.from_instances([each["instances"] for each in batch], (0, 1), torch.device("cpu"))
    losses = model.criterion(predictions, targets, supervisions)
    repeated = Targets(
        targets.labels.repeat(1, 3), targets.boxes.repeat(1, 3, 1), tuple(3 * n for n in targets.counts), (0, 1)
    )
    alone = model.criterion({**predictions, "main": predictions["hybrid"]}, repeated)
    names = [name for name in alone if not name.endswith("_enc")]
    assert len(names) == 9
    for name in names:
        torch.testing.assert_close(losses[f"{name}_one2many"], 0.5 * alone[name])


def test_epoch_scheme_switches():
    model, batch = switch_on(make_model(TWO_STAGE), HybridEpoch(max_iter=12, rho=0.5, copies=3)), make_batch()
    main, encoder = model.criterion.supervisions
    for iteration, copies in ((0, 3), (5, 3), (6, 1), (11, 1)):
        supervisions = training_step(model, batch, iteration)[1]
        assert [each.group for each in supervisions] == ["main", "encoder"]
        assert supervisions[0].assigner.copies == supervisions[0].repeats == copies
        assert supervisions[0].assigner.cost is main.assigner.cost and supervisions[1] is encoder
    assert main.assigner.copies == 1


def test_epoch_scheme_takes_its_length_from_the_config():
    cfg = model_zoo.get_config("h_detr/h_deformable_detr_epoch_digits.py")
    cfg.train.max_iter = 300
    assert instantiate(cfg.model.methods)[0].end == pytest.approx(200)


def test_layer_scheme():
    model = switch_on(make_model(TWO_STAGE), HybridLayer(num_layers=2, copies=3))
    predictions, supervisions = training_step(model, make_batch())
    found = [(each.group, [*each.numbers(3)], each.assigner.copies, each.repeats) for each in supervisions[:2]]
    assert found == [("main", [0, 1], 3, 3), ("main", [2], 1, 1)]
    targets = Targets.from_instances([each["instances"] for each in make_batch(2, 1)], (0, 1), torch.device("cpu"))
    many, one, _ = model.criterion.assign(predictions, targets, supervisions)
    assert len(many.query) == 2 * 3 * 3 and len(one.query) == 3
    plain = make_model(TWO_STAGE)
    assert model(make_batch()).keys() == plain(make_batch()).keys()


def test_layer_scheme_of_a_detector_with_layers_of_its_own():
    """Align-DETR matches the last layer otherwise than those before."""
    model = switch_on(make_model(ALIGN), HybridLayer(num_layers=1, copies=4))
    supervisions = [each for each in training_step(model, make_batch())[1] if each.group == "main"]
    assert [([*each.numbers(3)], each.assigner.copies) for each in supervisions] == [([0], 4), ([1], 2), ([2], 1)]


def test_with_denoising():
    model, batch = switch_on(make_model(DINO), HybridBranch(num_queries=12, copies=3)), make_batch()
    alone = copy.deepcopy(model)
    alone.methods = alone.methods[:1]
    assert isinstance(alone.methods[0], ContrastiveDenoising)
    with torch.no_grad():
        together, _ = training_step(model, batch)
        expected, _ = training_step(alone, batch)
        torch.manual_seed(0)
        losses = model(batch)
    assert together.keys() == {"main", "encoder", "denoising", "hybrid"}
    torch.testing.assert_close(together["denoising"].logits, expected["denoising"].logits)
    assert {"loss_class_dn", "loss_class_dn_1", "loss_class_one2many", "loss_class_1_one2many"} <= losses.keys()


def test_detectors_it_does_not_work_for():
    model = make_model(TWO_STAGE)
    main = model.criterion.supervisions[0]
    model.criterion.supervisions = (main.replace(assigner=TopKAssigner(main.assigner.cost)),)
    for method in all_schemes():
        with pytest.raises(
            ValueError, match=r"HungarianMatcher; in this detector the main group is .* by TopKAssigner"
        ):
            method.attach(model)
    model = make_model(TWO_STAGE)
    model.query_source = nn.Identity()
    with pytest.raises(ValueError, match="HybridBranch needs more queries of the same kind, which Identity cannot"):
        HybridBranch().attach(model)
    for layers in (0, 3):
        with pytest.raises(ValueError, match=f"num_layers is {layers}, but of the 3 layers"):
            HybridLayer(layers).attach(make_model(TWO_STAGE))


def test_wrong_values():
    for copies in (0, 2.5):
        with pytest.raises(ValueError, match=f"copies must be a whole number, at least 1, got {copies}"):
            HybridBranch(copies=copies)
    for num_queries in (0, 2.5):
        with pytest.raises(ValueError, match=f"num_queries must be a whole number, at least 1, got {num_queries}"):
            HybridBranch(num_queries=num_queries)
    with pytest.raises(ValueError, match="weight must not be negative, got -1"):
        HybridBranch(weight=-1)
    with pytest.raises(ValueError, match=r"rho must be in \[0, 1\], got 2"):
        HybridEpoch(max_iter=10, rho=2)
    for max_iter in (None, 0):
        with pytest.raises(ValueError, match=rf"max_iter must be the iterations of the training .* got {max_iter}"):
            HybridEpoch(max_iter=max_iter)
    with pytest.raises(ValueError, match=r"num_layers must be a whole number, got 1\.5"):
        HybridLayer(1.5)


def test_epoch_scheme_outside_of_a_training():
    model = switch_on(make_model(TWO_STAGE), HybridEpoch(max_iter=10))
    with pytest.raises(RuntimeError, match="HybridEpoch needs the current iteration"):
        model.train()(make_batch())


def test_more_queries_than_tokens():
    model = switch_on(make_model(TWO_STAGE), HybridBranch(num_queries=1500))
    memory = model.encode(model.preprocess(make_batch()))
    (main, hybrid), _ = model.query_source.groups(memory, [method.further for method in model.methods])
    assert main.content.shape[1] == 10 and hybrid.content.shape[1] == 126
    assert all(loss.isfinite() for loss in model.train()(make_batch()).values())
