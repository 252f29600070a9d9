"""What queries look at: maps and points by their definitions, the choice of queries, and the picture."""

import pytest
import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from detrx.analysis.attention import Chosen, Look, SamplingPoints, choose_queries, look_at, on_finest_grid
from detrx.analysis.attention_figure import OTHER_TRUTH, OWN_TRUTH, PREDICTED, Row, draw_attention
from detrx.modeling import DetectionTransformer, Predictions
from detrx.projects.qr_detr import FixedRouter, QueryRouting
from tests.modeling.small import make_input, make_model, with_boxes

DETR, CONDITIONAL = "detr/detr_digits.py", "conditional_detr/conditional_detr_digits.py"
SIZE = (64, 96)


def evaluated(name: str) -> DetectionTransformer:
    return make_model(name).eval()


def outputs(modules: dict[str, nn.Module], model: DetectionTransformer, inputs: dict) -> dict[str, Tensor]:
    """Of the last call of some modules."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model([inputs])
    for hook in hooks:
        hook.remove()
    return found


def by_heads(x: Tensor, heads: int) -> Tensor:
    """(1, N, C) -> (heads, N, C / heads)."""
    return x[0].unflatten(-1, (heads, -1)).transpose(0, 1)


@pytest.mark.parametrize("part", ["spatial", "content", "full"])
@pytest.mark.parametrize("layer", [0, -1])
def test_maps_of_conditional_detr(part: str, layer: int):
    """The comparison of the sine embeddings of places, that of contents, and their sum."""
    model, inputs = evaluated(CONDITIONAL), make_input(*SIZE)
    attention = model.decoder.layers[layer].cross_attn
    names = ["query_content_proj", "query_sine_proj", "key_content_proj", "key_pos_proj"]
    names += ["query_pos_proj"] if layer == 0 else []
    found = outputs({name: getattr(attention, name) for name in names}, model, inputs)
    content, key = found["query_content_proj"], found["key_content_proj"]
    if layer == 0:
        content, key = content + found["query_pos_proj"], key + found["key_pos_proj"]
    pairs = {"content": (content, key), "spatial": (found["query_sine_proj"], found["key_pos_proj"])}
    wanted = pairs.values() if part == "full" else [pairs[part]]
    logits = sum(by_heads(q, 4) @ by_heads(k, 4).transpose(1, 2) for q, k in wanted) / 32**0.5
    look = look_at(model, inputs, layer, part)
    torch.testing.assert_close(look.attention, logits.softmax(-1).unflatten(-1, (8, 12)), atol=1e-6, rtol=1e-4)
    assert look.num_heads == 4


@pytest.mark.parametrize("part", ["spatial", "content", "full"])
def test_maps_of_detr(part: str):
    """The query's content and position against the positions of the tokens, their contents, or both."""
    model, inputs = evaluated(DETR), make_input(*SIZE)
    attention = model.decoder.layers[-1].cross_attn
    seen = {}
    hook = attention.register_forward_hook(lambda _, arguments, __: seen.update(zip("qm", arguments, strict=True)))
    look = look_at(model, inputs, part=part)
    hook.remove()
    queries, memory = seen["q"], seen["m"]
    (wq, wk, _), (bq, bk, _) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q = (queries.content + queries.pos) @ wq.T + bq
    keys = {"spatial": memory.pos, "content": memory.tokens, "full": memory.pos + memory.tokens}
    logits = by_heads(q, 4) @ by_heads(keys[part] @ wk.T + bk, 4).transpose(1, 2) / 16**0.5
    torch.testing.assert_close(look.attention, logits.softmax(-1).unflatten(-1, (8, 12)), atol=1e-5, rtol=1e-4)


def test_points_of_deformable_attention():
    """At the start, points lie on rays around the reference, and all weigh the same."""
    model, inputs = evaluated("deformable_detr/deformable_detr_digits.py"), make_input(*SIZE)
    attention = model.decoder.layers[-1].cross_attn
    attention.reset_parameters()
    look = look_at(model, inputs)
    heads, samples = attention.num_heads, attention.num_levels * attention.num_points
    points = look.attention
    assert points.places.shape == (heads, 10, samples, 2) and look.num_heads == heads
    torch.testing.assert_close(points.weights, torch.full((heads, 10, samples), 1 / samples))
    away = points.places - points.reference[None, :, None]
    assert (away[0, ..., 0] > 0).all() and away[0, ..., 1].abs().max() < 1e-5, (
        "the ray of the first head is to the right"
    )


def test_levels_are_added_up():
    class Memory:
        shapes = ((2, 4), (1, 2))

    weights = torch.tensor([0.0] * 8 + [0.4, 0.6])[None, None]
    expected = torch.tensor([[0.1, 0.1, 0.15, 0.15]] * 2)
    torch.testing.assert_close(on_finest_grid(weights, Memory)[0, 0], expected)


def test_chosen_queries():
    model, inputs = evaluated(CONDITIONAL), with_boxes(make_input(*SIZE), 3)
    look = look_at(model, inputs)
    assert choose_queries(model, look, inputs, [7, 0]) == [Chosen(7), Chosen(0)]
    best = choose_queries(model, look, inputs, "best", most=4)
    with torch.no_grad():
        (result,) = model([inputs])
    assert [each.query for each in best] == list(dict.fromkeys(result["instances"].pred_queries.tolist()))[:4]
    with torch.no_grad():  # boxes and classes that some queries predict
        boxes, classes = look.boxes[[4, 1]], look.scores[[4, 1]].argmax(1)
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    inputs["instances"] = inputs["instances"][:2]
    inputs["instances"].gt_boxes.tensor = corners * torch.tensor([96.0, 64.0, 96.0, 64.0])
    inputs["instances"].gt_classes = classes
    assert choose_queries(model, look, inputs, "truth") == [Chosen(4, 0), Chosen(1, 1)]
    assert choose_queries(model, look, inputs, "truth", most=1) == [Chosen(4, 0)]
    inputs["instances"] = inputs["instances"][:0]
    assert choose_queries(model, look, inputs, "truth") == []


def test_what_cannot_be_drawn():
    model, inputs = evaluated(CONDITIONAL), with_boxes(make_input(*SIZE), 1)
    with pytest.raises(ValueError, match="layer 3 does not exist: the model has 3 decoder layers"):
        look_at(model, inputs, 3)
    with pytest.raises(ValueError, match="part of an attention map must be one of"):
        look_at(model, inputs, part="all")
    look = look_at(model, inputs)
    with pytest.raises(ValueError, match=r"queries \[10\] do not exist: the model has 10 queries"):
        choose_queries(model, look, inputs, [2, 10])
    with pytest.raises(ValueError, match='queries must be "truth", "best" or indices'):
        choose_queries(model, look, inputs, "worst")
    row = Row("a", look, Chosen(0))
    with pytest.raises(ValueError, match=r"heads \[4\] do not exist: a has 4 heads"):
        draw_attention(inputs["image"], [row], [0, 4])
    with pytest.raises(ValueError, match="there is no query to draw"):
        draw_attention(inputs["image"], [])
    with pytest.raises(ValueError, match="boxes must be one of"):
        draw_attention(inputs["image"], [row], boxes="all")
    routing = QueryRouting(router=FixedRouter(1.0))
    model.methods.append(routing)
    routing.attach(model)
    with pytest.raises(ValueError, match="is a RoutedDecoderLayer, in which not all queries attend"):
        look_at(model.eval(), inputs)


def test_picture():
    """Panels in the order of rows and heads, the map stretched over the image, and the boxes of each row."""
    maps = torch.full((3, 2, 2, 4), 0.01)
    maps[2, 1, 0, 3] = 1.0
    predictions = Predictions(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 4))
    scores = torch.tensor([[0.1, 0.2], [0.9, 0.3]])
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.25, 0.5, 0.5, 1.0]])
    dense = Look(predictions, scores, boxes, maps)
    sampling = SamplingPoints(
        places=torch.full((3, 2, 4, 2), 0.5),
        weights=torch.tensor([0.1, 0.4, 0.3, 0.2]).expand(3, 2, 4),
        reference=torch.tensor([[0.5, 0.5], [0.25, 0.75]]),
    )
    deformable = Look(predictions, scores, boxes, sampling)
    rows = [Row("dense", dense, Chosen(1, 0)), Row("deformable", deformable, Chosen(1, 1))]
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    truth = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.1, 0.1, 0.1, 0.1]])
    figure = draw_attention(image, rows, [2, 0], truth, boxes="both", class_names=["cat", "dog"])
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["head 2", "head 0", "", ""]
    assert [panel.get_ylabel() for panel in panels[::2]] == [
        "dense\nquery 1: cat 0.90",
        "deformable\nquery 1: cat 0.90",
    ]
    _, heat = panels[0].get_images()
    assert heat.get_array().tolist() == maps[2, 1].tolist() and list(heat.get_extent()) == [0, 80, 40, 0]
    (points,) = panels[2].collections
    assert points.get_offsets().tolist() == [[40.0, 20.0]] * 4
    assert points.get_array().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    (line,) = panels[2].lines
    assert line.get_xydata().tolist() == [[20.0, 30.0]]
    for panel, colours in ((panels[0], [OWN_TRUTH, OTHER_TRUTH]), (panels[2], [OTHER_TRUTH, OWN_TRUTH])):
        drawn = [patch for patch in panel.patches if isinstance(patch, Rectangle)]
        assert [colour_of(patch) for patch in drawn] == [*colours, PREDICTED]
        assert drawn[0].get_bbox().bounds == pytest.approx((30, 10, 20, 20))
        assert drawn[2].get_bbox().bounds == pytest.approx((0, 0, 40, 40))
    bare = draw_attention(image, rows[:1], boxes="none", true_boxes=truth)
    assert len(bare.axes) == 3 and not any(panel.patches for panel in bare.axes)


def colour_of(patch: Rectangle) -> str:
    from matplotlib.colors import to_hex

    return to_hex(patch.get_edgecolor())
