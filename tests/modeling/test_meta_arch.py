"""The meta-architecture through Detectron2's interface, on small random models."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from detrx.d2.modeling import META_ARCH_REGISTRY, detector_postprocess
from detrx.modeling import DetectionTransformer, Method, Predictions, Step, TopDetections, as_detection_transformer
from tests.modeling.small import all_detections, make_input, make_model, with_boxes


def test_registered():
    assert META_ARCH_REGISTRY.get("DetectionTransformer") is DetectionTransformer


def test_only_a_detection_transformer_is_one():
    model = make_model()
    assert as_detection_transformer(model) is model
    with pytest.raises(ValueError, match="the model is a Linear, expected a DetectionTransformer"):
        as_detection_transformer(nn.Linear(1, 1))


def test_training_returns_losses_for_every_layer():
    losses = make_model().train()([with_boxes(make_input(64, 96), 2), with_boxes(make_input(64, 64), 0)])
    kinds = ("loss_class", "loss_bbox", "loss_giou")
    assert set(losses) == {kind + suffix for kind in kinds for suffix in ("", "_0", "_1", "_enc")}
    assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())


def test_training_without_a_criterion():
    model = make_model().train()
    model.criterion = None
    with pytest.raises(ValueError, match=r"model\.criterion is None, but training needs"):
        model([with_boxes(make_input(64, 64), 1)])


def test_detections_tell_their_queries():
    """A query can be detected as several classes."""
    logits = torch.tensor([[0.0, 9.0, 8.0], [3.0, 2.9, 0.0], [0.0, 0.0, 5.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]])
    (found,) = TopDetections(num_detections=4)(Predictions(logits[None, None], boxes[None, None]), [(10, 10)])
    assert found.pred_queries.tolist() == [0, 0, 2, 1] and found.pred_classes.tolist() == [1, 2, 2, 0]
    torch.testing.assert_close(found.pred_boxes.area(), torch.tensor([1.0, 1.0, 16.0, 4.0]))


def test_detections_below_the_threshold_are_left_out():
    scores = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.6, 0.4]])
    predictions = Predictions(scores.logit()[None, :, :, None], torch.full((1, 2, 3, 4), 0.25))
    detections = TopDetections(num_detections=3, score_threshold=0.3)
    for frames in (None, [(10, 10), (20, 20)]):
        found = detections(predictions, [(10, 10)] * 2, frames)
        assert [each.pred_queries.tolist() for each in found] == [[0, 2], [1, 2]]
        assert all(bool((each.scores > 0.3).all()) for each in found)
    padding = torch.tensor([[True, False, False], [False, False, False]])
    first, _ = detections(dataclasses.replace(predictions, padding=padding), [(10, 10)] * 2)
    assert first.pred_queries.tolist() == [2]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan"), "high"])
def test_thresholds_that_are_none(threshold: object):
    with pytest.raises(ValueError, match=r"score_threshold must be in \[0, 1\], got"):
        TopDetections(score_threshold=threshold)


def test_output_frames_are_those_of_detectron2():
    """Scaled, clipped and without boxes that have no area, in all images at once."""
    centres, sizes = torch.rand(2, 12, 2) * 2 - 0.5, torch.rand(2, 12, 2) * 0.5
    sizes[0, ::3] = 0
    predictions = Predictions(torch.randn(1, 2, 12, 3), torch.cat([centres, sizes], dim=-1)[None])
    image_sizes, frames = [(64, 96), (50, 70)], [(640, 480), (50, 70)]
    detections = TopDetections(num_detections=30)
    found = detections(predictions, image_sizes, frames)
    counts = [len(each) for each in found]
    assert 0 < counts[0] < 30 and 0 < counts[1] < 30 and counts[0] != counts[1]
    for each, alone, frame in zip(found, detections(predictions, image_sizes), frames, strict=True):
        expected = detector_postprocess(alone, *frame)
        assert each.image_size == expected.image_size
        assert torch.equal(each.pred_boxes.tensor, expected.pred_boxes.tensor)
        for name in ("scores", "pred_classes", "pred_queries"):
            assert torch.equal(each.get(name), expected.get(name)), name


@torch.no_grad()
def test_boxes_that_are_no_numbers():
    model = make_model().eval()
    model.decoder.heads.box_heads[-1].layers[-1].bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"boxes are NaN or infinite in images \[0, 1\] of the batch"):
        model([make_input(64, 96), make_input(64, 64)])


@torch.no_grad()
def test_inference_returns_sorted_instances_in_the_output_frame():
    model = make_model().eval()
    small, large = model([make_input(64, 96)]), model([make_input(64, 96, height=640, width=480)])
    found = small[0]["instances"]
    assert found.image_size == (64, 96) and large[0]["instances"].image_size == (640, 480)
    assert 0 < len(found) <= 100 and found.pred_classes.max() < 10
    assert (found.scores[:-1] >= found.scores[1:]).all()
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()


@torch.no_grad()
def test_scaling_the_output_frame_scales_the_boxes():
    model, each = make_model().eval(), make_input(64, 96)
    boxes = model([each])[0]["instances"].pred_boxes.tensor
    doubled = model([{**each, "height": 128, "width": 192}])[0]["instances"].pred_boxes.tensor
    torch.testing.assert_close(doubled, 2 * boxes)


DETECTORS = ["deformable_detr/deformable_detr_digits.py", "dino/dino_digits.py", "align_detr/align_detr_digits.py"]


@torch.no_grad()
@pytest.mark.parametrize("config", DETECTORS)
def test_a_padded_image_gives_the_detections_of_the_image_alone(config: str):
    model = make_model(config).eval()
    small, large = make_input(70, 90), make_input(128, 160)
    alone, padded = all_detections(model, [small]), all_detections(model, [small, large])
    torch.testing.assert_close(padded.scores, alone.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    assert torch.equal(padded.pred_classes, alone.pred_classes)
    model.mask_padding = False
    assert not torch.allclose(all_detections(model, [small, large]).scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("config", DETECTORS)
@pytest.mark.parametrize("counts", [(3, 2), (0, 2), (0, 0)])
def test_every_parameter_is_trained(config: str, counts: tuple[int, int]):
    """With and without boxes: distributed training waits for the gradient of every parameter."""
    model = make_model(config).train()
    batch = [with_boxes(make_input(64, 96), counts[0]), with_boxes(make_input(64, 64), counts[1])]
    sum(model(batch).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_divergence_is_reported_with_image_ids():
    model = make_model().train()
    nn.init.constant_(model.decoder.heads.box_heads[-1].layers[-1].bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"image ids \[17\]"):
        model([with_boxes(make_input(64, 64, image_id=17), 1)])


class ConstantLoss(Method):
    """A method with a loss of its own."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def extra_losses(self, step: Step, predictions: Mapping[str, Predictions]) -> dict[str, Tensor]:
        assert "main" in predictions and step.main.name == "main"
        return {self.name: predictions["main"].boxes.sum() * 0 + 2}


def test_losses_of_methods_are_added():
    model, batch = make_model().train(), [with_boxes(make_input(64, 64), 2)]
    plain = model(batch)
    model.methods.append(ConstantLoss("loss_constant"))
    losses = model(batch)
    assert losses.pop("loss_constant") == 2 and losses.keys() == plain.keys()
    model.methods.append(ConstantLoss("loss_class"))
    with pytest.raises(ValueError, match=r"ConstantLoss gives losses \['loss_class'\]"):
        model(batch)
