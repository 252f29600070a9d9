"""PaQ-DETR: mixing, diversity, assignment by hand; padding, gradients, each half alone, beside other methods, cost."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detrx import model_zoo
from detrx.d2.config import LazyCall as L
from detrx.d2.config import instantiate
from detrx.d2.structures import Boxes, Instances
from detrx.modeling import (
    AnchorQueries,
    Denoising,
    DetectionTransformer,
    EncoderProposals,
    FocalLoss,
    HungarianMatcher,
    IABCELoss,
    LearnedQueries,
    MultiScaleTokens,
    PositionQueries,
    Predictions,
    QueryContent,
    Targets,
    Tokenizer,
    VarifocalLoss,
)
from detrx.modeling.tokens import pad_features
from detrx.projects.h_detr import HybridBranch, HybridLayer
from detrx.projects.mr_detr import MrDETR
from detrx.projects.paq_detr import (
    PatternContent,
    PatternDiversity,
    QualityAwareAssigner,
    QualityAwareAssignment,
    WeightGenerator,
    diversity_loss,
)
from tests.modeling.small import make_input, make_model
from tests.projects.contract import detector, losses_of, make_batch, switch_on, training_step

DEFORMABLE, DINO, DN, DAB = (
    f"paq_detr/paq_{name}_digits.py" for name in ("deformable_detr", "dino", "dn_detr", "dab_detr")
)
PATTERNS, ASSIGNMENT = (f"paq_detr/paq_deformable_detr_{half}_digits.py" for half in ("patterns", "assignment"))
PLAIN = "deformable_detr/deformable_detr_digits.py"


class FlatPosition(nn.Module):
    def forward(self, mask: Tensor) -> Tensor:
        return torch.zeros(len(mask), 6, *mask.shape[1:])


def tokens_of(images: Sequence[Sequence[Tensor]]) -> MultiScaleTokens:
    """A batch of images, each given as its levels; what lies in the padding is not zero."""
    features, masks = pad_features(images)
    features = [torch.where(mask[:, None], 1e3, x) for x, mask in zip(features, masks, strict=True)]
    return Tokenizer(FlatPosition(), 6, len(features), level_embedding=False)(features, masks)


def levels_of(height: int, width: int, count: int = 3) -> list[Tensor]:
    """Random levels of an image, each half as large as the one before, rounded up."""
    return [torch.randn(6, -(-height // 2**level), -(-width // 2**level)) for level in range(count)]


def set_weights(content: PatternContent, weights: Tensor) -> None:
    """Let every image have the weights (n, m)."""
    with torch.no_grad():
        content.generator.mlp[-1].weight.zero_()
        content.generator.mlp[-1].bias.copy_(weights.log().flatten())


def test_mixing_by_hand():
    content = PatternContent(num_queries=3, embed_dim=6, num_levels=1, num_patterns=2)
    set_weights(content, torch.tensor([[0.25, 0.75], [1.0, 1e-30], [0.5, 0.5]]))
    with torch.no_grad():
        content.patterns.copy_(torch.tensor([[4.0] * 6, [8.0, -8.0, 0.0, 4.0, 0.0, 0.0]]))
    expected = torch.tensor([[7.0, -5, 1, 4, 1, 1], [4.0] * 6, [6.0, -2, 2, 4, 2, 2]])
    torch.testing.assert_close(content(tokens_of([levels_of(4, 4, 1)]))[0], expected)


def test_a_query_teaches_the_patterns_it_uses():
    """dq_i / dp_j = w_ij: every pattern gets a gradient from any query, by its weight."""
    content = PatternContent(num_queries=4, embed_dim=6, num_levels=3, num_patterns=5)
    memory = tokens_of([levels_of(9, 8)])
    weights = content.generator(memory)[0]
    assert torch.allclose(weights.sum(-1), torch.ones(4)) and (weights > 0).all()
    for query in range(4):
        (grad,) = torch.autograd.grad(content(memory)[0, query].sum(), content.patterns)
        torch.testing.assert_close(grad, weights[query, :, None].expand(-1, 6))


def test_queries_begin_as_mixtures_of_their_own():
    torch.manual_seed(0)
    memory = tokens_of([levels_of(4, 5, 1)])
    content, alike = (PatternContent(20, 6, 1, num_patterns=50, spread=spread) for spread in (3.0, 0.0))
    with torch.no_grad():
        weights, even = content.generator(memory), alike.generator(memory)
    assert weights.amax(-1).mean() > 0.2 and even.amax(-1).mean() < 0.1
    unit = torch.nn.functional.normalize(weights[0], dim=-1)
    assert (unit @ unit.T).fill_diagonal_(0).mean() < 0.3


def test_generator_by_hand():
    """One pixel with two channels on each of two levels: convolutions, sum, attention and pooling."""
    generator = WeightGenerator(1, 2, embed_dim=6, num_levels=2, channels=2, hidden_dim=2, kernel_size=3)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
        for level in range(2):
            generator.reduce[level].weight[:, :2, 0, 0] = torch.eye(2)
            generator.dilate[level].weight[:, :, 1, 1] = torch.eye(2) * (level + 1)
        generator.channel_attention[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        generator.channel_attention[2].weight.copy_(torch.tensor([[0.5], [0.0]]))
        generator.spatial_attention.weight[0, :, 1, 1] = torch.tensor([1.0, 0.5])
    fine, coarse = torch.tensor([3.0, -1, 9, 9, 9, 9]), torch.tensor([1.0, 2, 9, 9, 9, 9])
    found = generator.describe(tokens_of([[fine[:, None, None], coarse[:, None, None]]]))
    # relu(3, -1) + 2 * relu(1, 2) = (5, 4); mean and maximum are the same, so their sum is sigmoid(2 * 0.5 * 5).
    x = torch.tensor([5 * torch.tensor(5.0).sigmoid(), 4 * 0.5])
    x = x * (x.mean() + 0.5 * x.max()).sigmoid()
    torch.testing.assert_close(found[0], x)


@pytest.mark.parametrize("size", [(13, 9), (8, 5), (1, 1), (7, 16), (20, 17)])
def test_padding_does_not_change_the_weights(size: tuple[int, int]):
    generator = WeightGenerator(4, 5, embed_dim=6, num_levels=3)
    small, large = levels_of(*size), levels_of(20, 17)
    with torch.no_grad():
        together, alone = generator(tokens_of([small, large])), generator(tokens_of([small]))
        other = generator(tokens_of([levels_of(*size)]))
    torch.testing.assert_close(together[0], alone[0])
    assert not torch.allclose(other[0], alone[0])


@torch.no_grad()
@pytest.mark.parametrize("name", [DEFORMABLE, DAB])
def test_weights_of_an_image_are_the_same_in_every_batch(name: str):
    model = make_model(name).eval()
    small, large = make_input(64, 72), make_input(96, 128)
    weights = [
        model.query_source.content.generator(model.encode(model.preprocess(batch)))[0]
        for batch in ([small, large], [small], [large])
    ]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)
    assert not torch.equal(weights[0], weights[2])


def test_number_of_levels_is_checked():
    with pytest.raises(ValueError, match="num_levels is 2, but the encoder has 3 levels"):
        WeightGenerator(4, 5, embed_dim=6, num_levels=2)(tokens_of([levels_of(9, 8)]))


def test_diversity_by_hand():
    patterns = torch.tensor([[1.0, 0.0], [3.0, 3.0], [-2.0, 0.0]], requires_grad=True)
    loss = diversity_loss(patterns)
    torch.testing.assert_close(loss, torch.tensor((2**-0.5 + 1 + 2**-0.5) / 3))
    loss.backward()
    assert patterns.grad[1].abs().sum() > 0


def test_diversity_is_a_loss_of_its_weight():
    model = make_model(PATTERNS)
    expected = 0.2 * diversity_loss(model.query_source.content.patterns)
    torch.testing.assert_close(losses_of(model, make_batch())["loss_diversity"], expected)


def test_quality_by_hand():
    """The second box covers half of the first: s = IoU - 0.4 * score of the class of the ground truth."""
    targets = make_targets([[0.5, 0.5, 0.4, 0.4]], labels=[1])
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.4, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]])
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.25], [0.0, 0.5]])
    found = QualityAwareAssigner(gamma=0.4).host_cost(
        Predictions(scores.logit()[None, None], boxes[None, None]), targets
    )
    torch.testing.assert_close(found[0, 0, :, 0], torch.tensor([1 - 0.36, 0.5 - 0.1, -0.2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 2, 2, 3, 4]),
        ({"positives": "article"}, [1, 1, 1, 1, 2, 2, 4]),
        ({"tau": 0.5}, [1, 1, 2, 3, 4, 4, 4]),
        ({"positives": "article", "tau": 2.0}, [1, 1, 1, 1, 1, 1, 2]),
        ({"positives": "article", "minimum": 2}, [2, 2, 2, 2, 2, 2, 4]),
    ],
)
def test_numbers_of_positives_by_hand(options: dict, expected: list[int]):
    totals = np.array([-0.5, 0.2, 1.0, 1.2, 1.6, 2.5, 3.9], dtype=np.float32)
    assert QualityAwareAssigner(**options).positives(totals).tolist() == expected


def make_targets(*images: list[list[float]], labels: list[int] | None = None) -> Targets:
    instances = []
    for boxes in images:
        cxcywh = torch.tensor(boxes).view(-1, 4) * 100
        xyxy = torch.cat([cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], dim=1)
        classes = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels)
        instances.append(Instances((100, 100), gt_boxes=Boxes(xyxy), gt_classes=classes))
    return Targets.from_instances(instances, range(len(instances)), torch.device("cpu"))


def test_assignment_by_hand():
    box = [0.5, 0.5, 0.2, 0.2]
    targets = make_targets([box, box], [box])
    quality = np.full((1, 2, 6, 2), -0.3, dtype=np.float32)
    # Sum of the best four: 1.5, so two positives; query 1 is wanted more by the other one, which takes one.
    quality[0, 0, :, 0] = [0.6, 0.5, 0.4, 0.0, -0.3, -0.3]
    quality[0, 0, :, 1] = [0.1, 0.7, -0.1, -0.1, -0.1, -0.2]
    # 0.9 + 0.8 + 0.7 + 0.6 = 3: three positives. The other column is no box, and better.
    quality[0, 1, :, 0] = [0.6, 0.0, 0.7, 0.9, 0.8, 0.1]
    quality[0, 1, :, 1] = 1.0
    found = QualityAwareAssigner().solve(quality, targets)
    assert sorted(map(tuple, found.tolist())) == [(0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 2, 0), (0, 1, 3, 0), (0, 1, 4, 0)]


def test_negative_qualities_lower_the_sum():
    """1.2 - 0.3 - 0.3 = 0.6: one positive, where the positive ones alone would give two."""
    targets = make_targets([[0.5, 0.5, 0.2, 0.2]])
    quality = np.array([0.7, 0.5, -0.3, -0.3], dtype=np.float32).reshape(1, 1, 4, 1)
    assert QualityAwareAssigner().solve(quality, targets).tolist() == [[0, 0, 0, 0]]


def test_layers_and_images_are_independent():
    counts = (3, 0, 1, 5)
    targets = make_targets(*([[0.5, 0.5, 0.2, 0.2]] * count for count in counts))
    quality = np.random.default_rng(0).random((2, 4, 9, 5), dtype=np.float32) * 1.4 - 0.4
    found = QualityAwareAssigner().solve(quality, targets)
    single = []
    for layer in range(2):
        for image, count in enumerate(counts):
            truth = make_targets([[0.5, 0.5, 0.2, 0.2]] * count)
            rows = QualityAwareAssigner().solve(quality[layer, image, :, : max(count, 1)][None, None], truth)
            single += [(layer, image, query, box) for _, _, query, box in rows.tolist()]
    assert sorted(map(tuple, found.tolist())) == sorted(single)
    assert {image for _, image, _, _ in single} == {0, 2, 3}
    queries = [row[:3] for row in sorted(single)]
    assert len(set(queries)) == len(queries), "no query is given away twice"


def test_fewer_queries_than_candidates():
    targets = make_targets([[0.5, 0.5, 0.2, 0.2]])
    quality = np.full((1, 1, 2, 1), 0.9, dtype=np.float32)
    assert len(QualityAwareAssigner().solve(quality, targets)) == 2


def test_no_boxes_at_all():
    predictions = Predictions(torch.zeros(2, 2, 5, 3), torch.rand(2, 2, 5, 4))
    assert len(QualityAwareAssigner().assign(predictions, make_targets([], [])).query) == 0


def test_last_layer_is_as_before():
    """Names of all losses, and values of those of the last layer and the encoder, bit for bit."""
    plain, batch = detector("deformable_detr_plus_plus"), make_batch()
    model = switch_on(copy.deepcopy(plain), QualityAwareAssignment())
    expected, found = losses_of(plain, batch), losses_of(model, batch)
    assert found.keys() == expected.keys()
    intermediate = {f"loss_{kind}_{layer}" for kind in ("class", "bbox", "giou") for layer in (0, 1)}
    assert intermediate < expected.keys()
    assert {key for key in expected if not torch.equal(found[key], expected[key])} == intermediate
    (last,) = [s for s in training_step(model, batch)[1] if s.group == "main" and s.layers.stop == 3]
    assert isinstance(last.assigner, HungarianMatcher) and range(3)[last.layers] == range(2, 3)


def test_losses_of_the_intermediate_layers():
    """As they are, but for the classes, whose loss becomes a varifocal one of the same weight."""
    expected = {"dn_detr": FocalLoss, "align_detr": IABCELoss}
    for name, kind in expected.items():
        model = switch_on(detector(name), QualityAwareAssignment())
        before = [s for s in model.criterion.supervisions if s.group == "main"]
        after = [s for s in model.methods[-1].supervise(before) if isinstance(s.assigner, QualityAwareAssigner)]
        assert all(isinstance(s.losses[0], kind) for s in before)
        for supervision in after:
            class_loss, *others = supervision.losses
            assert isinstance(class_loss, VarifocalLoss) and class_loss.weight == before[0].losses[0].weight
            assert [loss.name for loss in others] == ["loss_bbox", "loss_giou"]
        assert sorted(layer for s in after for layer in s.numbers(3)) == [0, 1]
    own = [VarifocalLoss(weight=7.0)]
    method = QualityAwareAssignment(losses=own)
    assert method.losses_of(before[0]) == tuple(own)


@pytest.mark.parametrize(
    ("layers", "expected"), [((None, -1), [0, 1]), ((1, 2), [1]), ((1, None), [1, 2]), ((None, None), [0, 1, 2])]
)
def test_layers_are_a_value(layers: tuple, expected: list[int]):
    """Of a detector with one supervision of all layers, and of one whose last layer has its own."""
    for name in ("deformable_detr_plus_plus", "align_detr"):
        model = switch_on(detector(name), QualityAwareAssignment(layers=layers))
        after = model.methods[-1].supervise([s for s in model.criterion.supervisions if s.group == "main"])
        changed = [isinstance(s.assigner, QualityAwareAssigner) for s in after for _ in s.numbers(3)]
        assert [number for s in after for number in s.numbers(3)] == [0, 1, 2]
        assert [number for number, each in enumerate(changed) if each] == expected
    losses = losses_of(model, make_batch())
    assert all(loss.isfinite() for loss in losses.values())


def test_more_queries_learn_than_with_one_to_one_matching():
    model = make_model(ASSIGNMENT)
    predictions, supervisions = training_step(model, make_batch())
    (step,) = [s for s in supervisions if isinstance(s.assigner, QualityAwareAssigner)]
    truth = Targets.from_instances([each["instances"] for each in make_batch()], (0, 1), model.device)
    good = Predictions(predictions["main"].logits[:2] * 0 - 5, truth.boxes[None, :, :1].expand(2, -1, 10, -1))
    pairs = step.assigner.assign(good, truth)
    assert len(pairs.query) == 2 * 2 * 4, "four for each of two images' boxes that all predictions fit, in two layers"


@pytest.mark.parametrize("name", [DEFORMABLE, DINO, DN, DAB, PATTERNS, ASSIGNMENT])
def test_trains_and_evaluates(name: str):
    model = make_model(name)
    for counts in ((3, 1), (0, 2), (0, 0)):
        model.zero_grad()
        losses = losses_of(model, make_batch(*counts))
        assert all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert evaluate(model)


@torch.no_grad()
def evaluate(model: DetectionTransformer) -> bool:
    """Whether it finds something, and from which query."""
    results = model.eval()([make_input(64, 96), make_input(96, 64)])
    return all(
        len(each["instances"]) and 0 <= int(each["instances"].pred_queries.max()) < model.query_source.num_queries
        for each in results
    )


@pytest.mark.parametrize("name", [DEFORMABLE, DINO, DN])
def test_beside_mr_detr(name: str):
    """Auxiliary routes start from the same patterns; so does the denoising go on all of them."""
    cfg = model_zoo.get_config(name).model
    cfg.methods.append(L(MrDETR)())
    model, batch = instantiate(cfg), make_batch()
    groups = []
    model.decoder.register_forward_pre_hook(lambda module, args: groups.extend(args[0]))
    losses = losses_of(model, batch)
    sum(losses.values()).backward()
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    by_name = {group.name: group for group in groups}
    assert torch.equal(by_name["instruction"].content, by_name["main"].content)
    assert torch.equal(by_name["ffn"].content, by_name["main"].content)
    has_denoising = any(isinstance(method, Denoising) for method in model.methods)
    assert ("denoising_ffn" in by_name) == has_denoising == (name != DEFORMABLE)
    assert {"loss_diversity", "loss_class_0", "loss_class"} < losses.keys()
    assert evaluate(model)


@pytest.mark.parametrize("name", [DEFORMABLE, DINO, DN])
def test_beside_h_detr(name: str):
    cfg = model_zoo.get_config(name).model
    cfg.methods.append(L(HybridBranch)(num_queries=12, copies=2))
    model, batch = instantiate(cfg), make_batch()
    predictions, _ = training_step(model, batch)
    assert predictions["hybrid"].logits.shape[2] == 12
    sum(losses_of(model, batch).values()).backward()
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert evaluate(model)


def test_two_methods_that_change_the_assignment():
    model = switch_on(detector("deformable_detr_plus_plus"), HybridLayer(1, copies=2), QualityAwareAssignment())
    with pytest.raises(ValueError, match="both change how the main queries are assigned"):
        losses_of(model, make_batch())
    model = switch_on(detector("deformable_detr_plus_plus"), QualityAwareAssignment(), HybridLayer(1, copies=2))
    with pytest.raises(ValueError, match="HybridLayer repeats the ground truth of a HungarianMatcher"):
        losses_of(model, make_batch())


SOURCES = {
    "learned": lambda content: LearnedQueries(4, 6, content=content),
    "positions": lambda content: PositionQueries(4, 6, content=content),
    "anchors": lambda content: AnchorQueries(4, 6, content=content),
    "proposals": lambda content: EncoderProposals(4, 6, num_classes=3, content=content, embed_position=False),
}


class Constant(QueryContent):
    def __init__(self, num_queries: int):
        super().__init__()
        self.num_queries = num_queries

    def forward(self, memory: MultiScaleTokens) -> Tensor:
        return torch.full((len(memory.tokens), self.num_queries, 6), 7.0)


@pytest.mark.parametrize("source", SOURCES)
def test_content_of_every_query_source(source: str):
    """Of the main queries only: places are those of the source, and so is the content of further queries."""
    memory = tokens_of([levels_of(20, 20), levels_of(12, 16)])
    queries = SOURCES[source](Constant(4))
    (main, further), _ = queries.groups(memory, [queries.further(3)])
    assert (main.content == 7).all() and main.content.shape == (2, 4, 6)
    assert further.content.shape == (2, 3, 6) and not (further.content == 7).any()
    assert not [key for key, _ in queries.named_parameters() if key.startswith(("content", "query_embed"))]
    with pytest.raises(ValueError, match="Constant makes content for 5 queries, but there are 4"):
        SOURCES[source](Constant(5))


def test_content_beside_patterns_of_anchors():
    with pytest.raises(ValueError, match="num_patterns is 2, but a content is given"):
        AnchorQueries(4, 6, num_patterns=2, content=Constant(4))


@pytest.mark.parametrize("name", [DEFORMABLE, DINO])
def test_mixed_precision(name: str):
    model, batch = make_model(name), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch)
    sum(losses.values()).backward()
    content = model.query_source.content
    assert all(p.grad.isfinite().all() and p.grad.any() for p in content.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        weights = content.generator(model.eval().encode(model.preprocess(batch)))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


@torch.no_grad()
@pytest.mark.parametrize("name", [DEFORMABLE, DAB])
def test_inference_compiles_to_one_graph_and_exports(name: str):
    model, images = make_model(name).eval(), torch.randn(2, 3, 64, 96)
    expected = model.predict(images, None)["main"]
    found = torch.compile(model.predict, fullgraph=True, backend="aot_eager")(images, None)["main"]
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()
    model.forward = lambda x: model.predict(x, None)["main"].logits
    exported = torch.export.export(model, (images,)).module()(images)
    torch.testing.assert_close(exported, expected.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "baseline"),
    [
        ("paq_detr/paq_deformable_detr_r50.py", "deformable_detr/deformable_detr_plus_plus_r50.py"),
        ("paq_detr/paq_dino_r50.py", "paq_detr/baseline_dino_r50.py"),
        ("paq_detr/paq_dab_detr_r50.py", "paq_detr/baseline_dab_detr_r50.py"),
    ],
)
def test_cost_of_inference(name: str, baseline: str):
    """Multiply-adds of convolutions, matrix products and attention on images of 800 x 1333; new parameters."""
    (with_patterns, keys), (plain, plain_keys) = cost(name), cost(baseline)
    assert plain < with_patterns <= 1.05 * plain
    assert all(key.startswith("query_source.content.") for key in keys - plain_keys)
    assert plain_keys - keys <= {"query_source.query_embed.weight"}


def cost(name: str) -> tuple[int, set[str]]:
    """Multiply-adds of inference, and the names of what it reads."""
    cfg = model_zoo.get_config(name).model
    cfg.backbone.pretrained = False
    with torch.device("meta"), torch.no_grad():
        model = instantiate(cfg).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            model.predict(torch.empty(1, 3, 800, 1333), None)
    keys = {key for key in model.state_dict() if not key.startswith("methods.")}
    return counter.get_total_flops() // 2, keys


def test_parameters_of_the_published_size():
    """150 patterns for 300 queries; the paper says 1.8 million more parameters, of what it does not say."""
    content = PatternContent(num_queries=300, embed_dim=256, num_levels=4)
    assert 1.5e6 < sum(parameter.numel() for parameter in content.parameters()) < 1.9e6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatternContent(4, 6, 1, num_patterns=1), "num_patterns must be at least 2, got 1"),
        (lambda: PatternDiversity(weight=-1.0), "weight must not be negative, got -1"),
        (lambda: QualityAwareAssigner(top_k=0), "minimum must be at least 1 and at most top_k"),
        (lambda: QualityAwareAssigner(minimum=5), "got minimum 5 and top_k 4"),
        (lambda: QualityAwareAssigner(tau=0.0), "tau must be positive, got 0.0"),
        (
            lambda: QualityAwareAssignment(positives="floor"),
            "positives must be one of .'paper', 'article'., got 'floor'",
        ),
        (lambda: switch_on(detector("dino"), PatternDiversity()), "this EncoderProposals has learned"),
        (lambda: switch_on(detector("detr"), PatternDiversity()), "this PositionQueries has NoneType"),
        (lambda: make_model(PLAIN, one_layer), r"layers \(None, -1\) are none of the decoder's 1"),
    ],
)
def test_errors(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def one_layer(cfg) -> None:
    cfg.decoder.num_layers = 1
    cfg.methods = [L(QualityAwareAssignment)()]


@pytest.mark.parametrize("layers", [5, ("all", None), (1.5, 2), (0, 6, 2), (True, None), "ab", None])
def test_layers_that_are_no_slice(layers: object):
    with pytest.raises(ValueError, match=r"layers must be two of whole numbers and None, such as \[null, -1\], got"):
        QualityAwareAssignment(layers=layers)
