"""Score calibration: the loss by hand, calibrated scores, on every detector with sigmoids, nothing where it is off."""

import copy
import math

import pytest
import torch

from detrx import model_zoo
from detrx.d2.config import LazyConfig, instantiate
from detrx.d2.structures import Boxes, Instances
from detrx.layers import inverse_sigmoid
from detrx.modeling import DetectionTransformer, KnownPairs, Predictions, Targets, TopDetections
from detrx.projects.mr_detr import CalibratedDetections, CalibratedHeads, MixedDetections, MrDETR, QualityLoss
from tests.modeling.small import SMALL_BACKBONE, SMALL_CHANNELS, make_input, with_boxes

CONFIGS = model_zoo.config_root().parent / "projects" / "mr_detr" / "configs"
calibrate = LazyConfig.load(str(CONFIGS / "common" / "calibration.py"), "calibrate")
DINO = "mr_detr/mr_detr_dino_digits.py"
ONE_STAGE = [f"{name}/{name}_digits.py" for name in ("conditional_detr", "dab_detr", "dn_detr")]
DETECTORS = [
    *(f"{name}/{name}_digits.py" for name in ("deformable_detr", "dino", "align_detr")),
    *("mr_detr/mr_detr_deformable_digits.py", DINO, "mr_detr/mr_detr_align_digits.py"),
    *ONE_STAGE,
    "deformable_detr/deformable_detr_r50.py",
]


def make_model(name: str, calibrated: bool = True) -> DetectionTransformer:
    """The detector of a config, small."""
    cfg = model_zoo.get_config(name).model
    if calibrated:
        calibrate(cfg)
    cfg.query_source.num_queries = 10
    cfg.tokenizer.embed_dim = 64
    cfg.tokenizer.position_embedding.num_feats = 32
    cfg.backbone.pretrained = False
    if "_digits" in name:
        cfg.backbone.model_args.update(SMALL_BACKBONE)
        cfg.neck.in_channels = [SMALL_CHANNELS[feature] for feature in cfg.neck.in_features]
    model = instantiate(cfg)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1 if "_digits" in name else 0.03)
    return model


def make_pair(name: str) -> tuple[DetectionTransformer, DetectionTransformer]:
    """The detector with and without calibration, with the same weights."""
    model, plain = make_model(name), make_model(name, calibrated=False)
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if ".quality_heads." not in key})
    return model, plain


def make_batch() -> list[dict]:
    return [with_boxes(make_input(64, 96), 3), with_boxes(make_input(64, 64), 1)]


def losses_of(model: DetectionTransformer, batch: list[dict]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)  # of denoising
    return model.train()(batch)


@pytest.fixture
def example():
    """Two boxes of classes 1 and 0; query 0 answers for the first with IoU .5, query 1 for the second with .25."""
    instances = Instances(
        (100, 100),
        gt_boxes=Boxes(torch.tensor([[0.0, 0, 40, 40], [50.0, 50, 90, 90]])),
        gt_classes=torch.tensor([1, 0]),
    )
    targets = Targets.from_instances([instances], [0], torch.device("cpu"))
    boxes = torch.tensor([[0.1, 0.2, 0.2, 0.4], [0.6, 0.6, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1]])
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.9], [0.6, 0.7]])
    quality = inverse_sigmoid(scores)[None, None].requires_grad_()
    predictions = Predictions(torch.randn(1, 1, 3, 2), boxes[None, None].requires_grad_(), quality=quality)
    known = KnownPairs(torch.zeros(2, dtype=torch.long), torch.arange(2), torch.tensor([0, 1]))
    return predictions, targets, known.assign(predictions, targets)


def test_loss_by_hand(example):
    """Matched: q * BCE(p, q) at the class of the box only; everywhere else alpha * p^gamma * BCE(p, 0)."""
    expected = sum(q * -(q * math.log(p) + (1 - q) * math.log(1 - p)) for p, q in ((0.2, 0.5), (0.3, 0.25)))
    expected += sum(0.75 * p**2 * -math.log(1 - p) for p in (0.1, 0.9, 0.6, 0.7))
    loss = QualityLoss(alpha=0.75, gamma=2.0)(*example)
    torch.testing.assert_close(loss, torch.tensor([expected]), atol=1e-4, rtol=1e-4)


def test_gradient_reaches_the_quality_alone(example):
    """Towards the IoU at the matched class and towards 0 elsewhere; boxes and class scores are left alone."""
    predictions, targets, pairs = example
    QualityLoss()(predictions, targets, pairs).sum().backward()
    assert predictions.boxes.grad is None
    expected = torch.tensor([[1.0, -1.0], [1.0, 1.0], [1.0, 1.0]])  # .2 rises to .5, .3 falls to .25
    assert torch.equal(predictions.quality.grad[0, 0].sign(), expected)
    weighted = 0.5 * (0.2 - 0.5)
    torch.testing.assert_close(predictions.quality.grad[0, 0, 0, 1], torch.tensor(weighted), atol=1e-4, rtol=1e-4)


def test_best_of_several_boxes_of_a_class_is_the_target(example):
    predictions, targets, _ = example
    targets = Targets(torch.ones_like(targets.labels), targets.boxes, targets.counts, targets.image_ids)
    losses = []
    for truths in ([0, 1], [1, 0], [0]):
        known = KnownPairs(
            torch.zeros(len(truths), dtype=torch.long), torch.zeros(len(truths), dtype=torch.long), torch.tensor(truths)
        )
        losses.append(QualityLoss()(predictions, targets, known.assign(predictions, targets)))
    assert torch.equal(losses[0], losses[2]) and torch.equal(losses[1], losses[2])


def random_predictions() -> Predictions:
    return Predictions(torch.randn(3, 2, 5, 4), torch.rand(3, 2, 5, 4), quality=torch.randn(3, 2, 5, 4))


def test_calibrated_scores():
    predictions = random_predictions()
    top = TopDetections(num_detections=7)
    s_cls, s_iou = predictions.logits[-1].sigmoid(), predictions.quality[-1].sigmoid()
    torch.testing.assert_close(CalibratedDetections(top, 0.3).scores(predictions), s_cls**0.3 * s_iou**0.7)
    torch.testing.assert_close(CalibratedDetections(top, 0.0).scores(predictions), s_iou)
    plain, calibrated = (each(predictions, [(9, 9)] * 2) for each in (top, CalibratedDetections(top, 1.0)))
    for expected, found in zip(plain, calibrated, strict=True):
        assert len(found) == 7 and torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(found.pred_classes, expected.pred_classes)


def test_calibration_of_mixed_scores():
    predictions = random_predictions()
    expected = (MixedDetections().scores(predictions) * predictions.quality[-1].sigmoid()).sqrt()
    torch.testing.assert_close(CalibratedDetections(MixedDetections(), 0.5).scores(predictions), expected)


def test_layers_keep_their_quality():
    predictions = random_predictions()
    assert torch.equal(predictions.of_layers(slice(1, None)).quality, predictions.quality[1:])


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector(name: str):
    """The losses are those of the plain detector and one more of every query group and layer; all parameters learn."""
    (model, plain), batch = make_pair(name), make_batch()
    losses, expected = losses_of(model, batch), losses_of(plain, batch)
    for key, value in expected.items():
        assert torch.equal(value, losses[key]), key
    more = losses.keys() - expected.keys()
    boxes = [key for key in expected if key.startswith("loss_bbox") and "_enc" not in key]
    assert more == {key.replace("loss_bbox", "loss_quality") for key in boxes}
    sum(losses.values()).backward()
    assert [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None] == []
    assert all(head.weight.grad.any() for head in model.decoder.heads.quality_heads)


@pytest.mark.parametrize("name", [f"mr_detr/mr_detr_pp_{name}_digits.py" for name in ("deformable", "dino", "align")])
def test_beside_experts(name: str):
    """The configs of Mr. DETR++ have the calibration, and everything in them learns."""
    model = make_model(name, calibrated=False)
    assert isinstance(model.decoder.heads, CalibratedHeads) and isinstance(model.postprocess, CalibratedDetections)
    losses = losses_of(model, make_batch())
    layers = len(model.decoder.layers)
    groups = 6 if "ContrastiveDenoising" in {type(method).__name__ for method in model.methods} else 3
    assert sum(key.startswith("loss_quality") for key in losses) == groups * layers
    sum(losses.values()).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("name", DETECTORS)
def test_inference_differs_in_the_scores_alone(name: str):
    model, plain = (each.eval() for each in make_pair(name))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = model.predict(images, None)["main"], plain.predict(images, None)["main"]
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.boxes, expected.boxes)
    assert found.quality.shape == found.logits.shape and expected.quality is None
    with torch.no_grad():
        scores = model([make_input(64, 96)])[0]["instances"].scores
    assert torch.isfinite(scores).all() and (scores.diff() <= 0).all()


def test_off_means_no_parameters():
    on, off = (dict(make_model(DINO, calibrated).named_parameters()) for calibrated in (True, False))
    assert {key.split(".")[2] for key in on.keys() - off.keys()} == {"quality_heads"} and off.keys() < on.keys()


@pytest.mark.parametrize("name", ["mr_detr/mr_detr_deformable_digits.py", DINO])
def test_quality_does_not_teach_the_boxes(name: str):
    """Nor the class scores: its gradient reaches no other head."""
    model = make_model(name)
    losses = losses_of(model, make_batch())
    sum(value for key, value in losses.items() if key.startswith("loss_quality")).backward()
    taught = {key.split(".")[0] for key, value in model.decoder.heads.named_parameters() if value.grad is not None}
    assert taught == {"quality_heads"}


def test_losses_of_a_method_are_calibrated_too():
    """Auxiliary routes with losses of their own, as in the published configs of Align-DETR."""
    cfg = model_zoo.get_config("mr_detr/mr_detr_align_r50.py").model
    calibrate(cfg)
    names = [loss._target_ for loss in cfg.methods[1].losses]
    assert names[-1] is QualityLoss and len(names) == 4
    losses = {each.group: [loss._target_ for loss in each.losses] for each in cfg.criterion.supervisions}
    assert QualityLoss in losses["main"] and QualityLoss not in losses["encoder"]


def test_images_without_boxes():
    model = make_model(DINO)
    losses = losses_of(model, [with_boxes(make_input(64, 96), 0), with_boxes(make_input(64, 64), 0)])
    assert all(torch.isfinite(value) for value in losses.values())
    sum(losses.values()).backward()
    assert all(head.weight.grad.any() for head in model.decoder.heads.quality_heads)


@pytest.mark.parametrize("name", [DINO, *ONE_STAGE[:1]])
def test_mixed_precision(name: str):
    model, batch = make_model(name), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model.eval()(batch)[0]["instances"].scores.dtype == torch.float32


class Scores(torch.nn.Module):
    """Inference up to the calibrated scores."""

    def __init__(self, model: DetectionTransformer):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.postprocess.scores(self.model.predict(images, None)["main"])


def test_export_and_compile():
    module, images = Scores(make_model(DINO)).eval(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = module(images)
        exported = torch.export.export(module, (images,)).module()(images)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(images)
    torch.compiler.reset()
    for found in (exported, compiled):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_inference_contract_beside_mr_detr():
    """Calibrated scores do not depend on the method's parameters."""
    model = make_model(DINO).eval()
    plain = copy.deepcopy(model)
    plain.methods = torch.nn.ModuleList(each for each in model.methods if not isinstance(each, MrDETR))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for parameter in model.methods.parameters():
            parameter.fill_(float("nan"))
        assert torch.equal(Scores(model)(images), Scores(plain)(images))


def test_errors(example):
    cfg = model_zoo.get_config("detr/detr_digits.py").model
    calibrate(cfg)
    with pytest.raises(Exception, match="needs a sigmoid for each class"):
        instantiate(cfg)
    with pytest.raises(ValueError, match=r"phi must be in \[0, 1\], got 1.5"):
        CalibratedDetections(TopDetections(), 1.5)
    predictions, targets, pairs = example
    without = Predictions(predictions.logits, predictions.boxes)
    with pytest.raises(ValueError, match="QualityLoss needs predictions with an IoU score"):
        QualityLoss()(without, targets, pairs)
    with pytest.raises(ValueError, match="heads are CalibratedHeads"):
        CalibratedDetections(TopDetections()).scores(without)
    assert isinstance(make_model(DINO).decoder.heads, CalibratedHeads)
