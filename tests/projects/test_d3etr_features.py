"""D3ETR, Table 4: distances of encoder features by loops over images and cells, and their teacher."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detrx.modeling import DetectionTransformer, MultiScaleTokens, Targets
from detrx.projects.d3etr import FGD, MGD, DeFeat, EncoderDistillation, FitNet
from detrx.projects.d3etr.feature_losses import FeatureLoss, covered_cells
from detrx.projects.d3etr.teacher import Teacher, freeze
from tests.projects.contract import SameKind, detector, distillation, losses_of, make_batch, switch_on

SHAPES = ((6, 8), (3, 4))
SIZES = [((6, 8), (3, 4)), ((4, 6), (2, 3))]  # unpadded rows and columns of each level, for two images
BOXES = [[[0.3, 0.4, 0.2, 0.5], [0.35, 0.45, 0.05, 0.05], [0.9, 0.9, 0.2, 0.2]], [[0.5, 0.5, 0.9, 0.3]]]


def make_tokens(channels: int, seed: int) -> MultiScaleTokens:
    """Of two images, of which the second one is padded."""
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for level, (height, width) in enumerate(SHAPES):
        mask = torch.ones(2, height, width, dtype=torch.bool)
        for image, levels in enumerate(SIZES):
            mask[image, : levels[level][0], : levels[level][1]] = False
        masks.append(mask.flatten(1))
    areas = [h * w for h, w in SHAPES]
    return MultiScaleTokens(
        tokens=torch.randn(2, sum(areas), channels, generator=generator),
        pos=torch.zeros(2, sum(areas), channels),
        padding_mask=torch.cat(masks, 1),
        shapes=SHAPES,
        spatial_shapes=torch.tensor(SHAPES),
        level_start_index=torch.tensor([0, areas[0]]),
        valid_ratios=torch.tensor(
            [[[w / width, h / height] for (h, w), (height, width) in zip(of, SHAPES, strict=True)] for of in SIZES]
        ),
    )


def make_targets() -> Targets:
    boxes = torch.zeros(2, 3, 4)
    for image, of_image in enumerate(BOXES):
        boxes[image, : len(of_image)] = torch.tensor(of_image)
    return Targets(torch.zeros(2, 3, dtype=torch.long), boxes, (3, 1), ("a", "b"))


def cells_of(box: list[float], height: int, width: int) -> set[tuple[int, int]]:
    """Those that overlap with a box, in an image of `height` x `width` cells."""
    cx, cy, w, h = box
    return {
        (row, column)
        for row in range(height)
        for column in range(width)
        if min((column + 1) / width, cx + w / 2) > max(column / width, cx - w / 2) + 1e-6
        and min((row + 1) / height, cy + h / 2) > max(row / height, cy - h / 2) + 1e-6
    }


def unpadded(tokens: MultiScaleTokens, image: int, level: int) -> Tensor:
    height, width = SIZES[image][level]
    return tokens.maps()[level][0][image, :, :height, :width]


def moved(loss: FeatureLoss) -> FeatureLoss:
    """With weights that are not those of the start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return loss


def test_cells_of_boxes():
    tokens, targets = make_tokens(4, 0), make_targets()
    for level, found in enumerate(covered_cells(tokens, targets)):
        assert found.shape == (2, 3, *SHAPES[level])
        for image, of_image in enumerate(BOXES):
            for index, box in enumerate(of_image):
                expected = cells_of(box, *SIZES[image][level])
                assert set(map(tuple, found[image, index].nonzero().tolist())) == expected
        assert not found[1, 1:].any()


def test_fitnet_by_a_loop():
    student, teacher = make_tokens(4, 0), make_tokens(6, 1)
    loss = moved(FitNet(4, 6, num_levels=2, weight=3.0))
    expected = 0.0
    for level in range(2):
        weight, bias = loss.adapt[level].weight[:, :, 0, 0], loss.adapt[level].bias
        values = []
        for image in range(2):
            own, other = (unpadded(each, image, level).flatten(1).T for each in (student, teacher))
            values.append((own @ weight.T + bias - other).square())
        expected = expected + torch.cat(values).mean() / 2
    found = loss(student, teacher, make_targets())
    torch.testing.assert_close(found, {"loss_distill_fitnet": 3 * expected})


def test_defeat_by_a_loop():
    student, teacher = make_tokens(4, 0), make_tokens(4, 1)
    loss = moved(DeFeat(4, num_levels=2))
    parts = {True: 0.0, False: 0.0}
    for level in range(2):
        values: dict[bool, list[Tensor]] = {True: [], False: []}
        for image in range(2):
            adapt = loss.adapt[level]
            own = F.conv2d(unpadded(student, image, level)[None], adapt.weight, adapt.bias, padding=1)
            difference = (own[0] - unpadded(teacher, image, level)).square()
            inside = set().union(*(cells_of(box, *SIZES[image][level]) for box in BOXES[image]))
            for row, column in torch.cartesian_prod(*map(torch.arange, SIZES[image][level])).tolist():
                values[(row, column) in inside].append(difference[:, row, column])
        for where, each in values.items():
            parts[where] = parts[where] + torch.stack(each).mean() / 2 / 2
    found = loss(student, teacher, make_targets())
    expected = {"loss_distill_defeat_object": 3 * parts[True], "loss_distill_defeat_background": 12 * parts[False]}
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("channels", "ratio"), [(6, 0.65), (4, 0.45), (6, 0.0)])
def test_mgd_by_its_definition(channels: int, ratio: float):
    """Each image by itself, without its padding, with the mask that the loss draws."""
    student, teacher = make_tokens(4, 0), make_tokens(channels, 1)
    loss = moved(MGD(4, channels, num_levels=2, weight=0.5, mask_ratio=ratio))
    torch.manual_seed(3)
    found = loss(student, teacher, make_targets())
    torch.manual_seed(3)
    total, hidden, count = 0.0, 0, 0
    for level in range(2):
        drawn = torch.rand(2, 1, *SHAPES[level])
        first, _, second = loss.generate[level]
        for image, levels in enumerate(SIZES):
            height, width = levels[level]
            own = unpadded(student, image, level)[None]
            if channels != 4:
                own = F.conv2d(own, loss.align[level].weight, loss.align[level].bias)
            mask = (drawn[image, :, :height, :width] <= 1 - ratio).float()
            hidden, count = hidden + (mask == 0).sum().item(), count + mask.numel()
            generated = F.conv2d(own * mask, first.weight, first.bias, padding=1).relu()
            generated = F.conv2d(generated, second.weight, second.bias, padding=1)
            total = total + (generated[0] - unpadded(teacher, image, level)).square().sum()
    torch.testing.assert_close(found, {"loss_distill_mgd": 0.5 * total / 2})
    assert abs(hidden / count - ratio) < 0.2


def context(x: Tensor, attention: torch.nn.Conv2d, transform: torch.nn.Sequential) -> Tensor:
    """Map (C, H, W) of an unpadded image with its global context."""
    channels = x.shape[0]
    tokens = x.flatten(1).T
    weights = (tokens @ attention.weight.view(channels) + attention.bias).softmax(0)
    return x + transform(weights @ tokens)[:, None, None]


def test_fgd_by_its_definition():
    student, teacher = make_tokens(4, 0), make_tokens(4, 1)
    loss = moved(FGD(4, num_levels=2, attention_weight=0.1, relation_weight=0.2))
    parts = {"object": 0.0, "background": 0.0, "attention": 0.0, "relation": 0.0}
    for level in range(2):
        for image, levels in enumerate(SIZES):
            height, width = levels[level]
            own, other = (unpadded(each, image, level) for each in (student, teacher))
            places, channels = [], []
            for x in (own, other):
                places.append(height * width * (x.abs().mean(0).flatten() / 0.5).softmax(0).view(height, width))
                channels.append(4 * (x.abs().mean((1, 2)) / 0.5).softmax(0))
            scale = torch.zeros(height, width)
            for box in BOXES[image]:
                cells = cells_of(box, height, width)
                for row, column in cells:
                    scale[row, column] = max(scale[row, column].item(), 1 / len(cells))
            background = (scale == 0).float() / (scale == 0).sum().clamp(min=1)
            weighted = places[1] * channels[1][:, None, None] * (own - other).square()
            parts["object"] += (weighted * scale).sum() / 2
            parts["background"] += (weighted * background).sum() / 2
            shift = (places[0] - places[1]).abs().sum() + (channels[0] - channels[1]).abs().sum()
            parts["attention"] += shift / 2
            contexts = loss.own_context[level], loss.other_context[level]
            rows = [context(x, c.attention, c.transform) for x, c in zip((own, other), contexts, strict=True)]
            parts["relation"] += (rows[0] - rows[1]).square().sum() / 2
    weights = {"object": 1e-3, "background": 5e-4, "attention": 0.1, "relation": 0.2}
    expected = {f"loss_distill_fgd_{key}": weights[key] * value for key, value in parts.items()}
    torch.testing.assert_close(loss(student, teacher, make_targets()), expected)


LOSSES = {
    "fitnet": lambda levels: FitNet(64, num_levels=levels),
    "defeat": lambda levels: DeFeat(64, num_levels=levels),
    "mgd": lambda levels: MGD(64, num_levels=levels),
    "fgd": lambda levels: FGD(64, num_levels=levels),
}


def alone(loss: FeatureLoss, teacher: DetectionTransformer | None = None) -> EncoderDistillation:
    method = EncoderDistillation(loss, "", allow_untrained=True)
    method.teacher = SameKind()
    if teacher is not None:
        method.teacher._model = freeze(copy.deepcopy(teacher))
    return method


@pytest.mark.parametrize("name", ["conditional_detr", "deformable_detr_plus_plus"])
@pytest.mark.parametrize("kind", LOSSES)
def test_alone(kind: str, name: str):
    """Finite losses with the names of the kind, gradients for encoder and loss; also for images without objects."""
    model = detector(name)
    levels = model.tokenizer.num_levels
    method = alone(LOSSES[kind](levels))
    switch_on(model, method)
    for batch in (make_batch(), make_batch(0, 0)):
        losses = {key: loss for key, loss in losses_of(model, batch).items() if "distill" in key}
        assert losses and all(key.startswith(f"loss_distill_{kind}") for key in losses)
        assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    model.zero_grad()
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert model.encoder.layers[0].norm2.weight.grad.any() and not any(
        parameter.grad is not None for parameter in model.decoder.parameters()
    )
    assert method.teacher._encoded is None and method._taught is None, "the tokens are kept after the step"


@pytest.mark.parametrize("first", [True, False])
def test_with_distillation_the_teacher_runs_once(first: bool):
    """And the losses of both are those that each has alone."""
    model = detector("conditional_detr")
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        elif isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = make_batch()
    teacher = detector("conditional_detr")
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.05)
    of_decoder = losses_of(switch_on(copy.deepcopy(model), distillation(teacher)), batch)
    of_encoder = losses_of(switch_on(copy.deepcopy(model), alone(FitNet(64), teacher)), batch)
    both = [distillation(teacher), EncoderDistillation(FitNet(64))]
    for method in both if first else both[::-1]:
        model.methods.append(method)
    for method in both:
        method.attach(model)
    assert both[1].teacher is both[0].teacher
    runs = []
    both[0].teacher._model.encoder.register_forward_hook(lambda *_: runs.append(1))
    found = losses_of(model, batch)
    assert len(runs) == 1
    assert found.keys() == of_decoder.keys() | of_encoder.keys()
    for key, loss in of_decoder.items():
        torch.testing.assert_close(found[key], loss, msg=key)


def test_kinds_of_tokens_that_cannot_be_compared():
    student, teacher = make_tokens(4, 0), make_tokens(6, 1)
    with pytest.raises(ValueError, match="4 channels and the teacher's 6, expected embed_dim=4 and teacher_dim=4"):
        FitNet(4, num_levels=2)(student, teacher, make_targets())
    with pytest.raises(ValueError, match="num_levels is 1, but the encoder has 2 levels"):
        MGD(4, 6)(student, teacher, make_targets())
    other = copy.copy(teacher)
    object.__setattr__(other, "shapes", ((6, 8), (2, 6)))
    with pytest.raises(ValueError, match=r"FGD: the student has token grids of the sizes .* use backbones of the same"):
        FGD(4, 6, num_levels=2)(student, other, make_targets())


def test_errors_of_the_method():
    with pytest.raises(ValueError, match=r"checkpoint='a\.pth', but no teacher"):
        EncoderDistillation(FitNet(64), checkpoint="a.pth")
    with pytest.raises(ValueError, match="has no teacher: set `teacher` and `checkpoint`, or add Distillation"):
        switch_on(detector("conditional_detr"), EncoderDistillation(FitNet(64)))
    with pytest.raises(ValueError, match="mask_ratio must be between 0 and 1"):
        MGD(64, mask_ratio=1.5)
    model = switch_on(detector("conditional_detr"), EncoderDistillation(FitNet(64), "detr/detr_digits.py"))
    assert isinstance(model.methods[-1].teacher, Teacher)
    with pytest.raises(ValueError, match="needs the weights of its teacher: set `checkpoint`"):
        losses_of(model, make_batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [FitNet, DeFeat, MGD, FGD])
def test_losses_of_tokens_in_half_precision(kind: type[FeatureLoss], dtype: torch.dtype):
    loss = moved(kind(8, 6, num_levels=2)).to(dtype)
    student, teacher = make_tokens(8, 0), make_tokens(6, 1)
    own = student.tokens.to(dtype).requires_grad_()
    found = loss(replace(student, tokens=own), replace(teacher, tokens=teacher.tokens.to(dtype)), make_targets())
    assert all(value.dtype == torch.float32 and value.isfinite() for value in found.values())
    sum(found.values()).backward()
    assert own.grad.isfinite().all() and all(p.grad.dtype == dtype for p in loss.parameters())
