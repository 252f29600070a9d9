"""Parts of the report: charts, colours, what is counted in images, what queries do."""

import json
import math
import re
from importlib import resources

import numpy as np
import pytest
import torch

from detrx import model_zoo
from detrx.analysis.report.charts import Series, bar_chart, line_chart, scatter_chart, share_chart
from detrx.analysis.report.detection_statistics import boxes_to_draw, compute_statistics, match_detections
from detrx.analysis.report.detections import Dataset, Detections
from detrx.analysis.report.query_watch import QueryWatch
from detrx.analysis.visualize import CORRECT, MISSED, WRONG
from detrx.d2.config import LazyCall as L
from detrx.projects.qr_detr import FixedRouter, QueryRouting
from tests.modeling.small import make_input, make_model


def drawn(chart):
    """What the page's script is given."""
    figure = json.loads(chart.json)
    return figure["data"], figure["layout"]


def test_lines():
    data, layout = drawn(line_chart("t", [Series("a", [0, 5, 10], [1, 3, 2])], "x", "y", x_range=(0, 20)))
    assert (data[0]["x"], data[0]["y"], data[0]["name"]) == ([0, 5, 10], [1, 3, 2], "a: 2")
    assert layout["xaxis"]["range"] == [0, 20]
    assert (layout["xaxis"]["title"]["text"], layout["yaxis"]["title"]["text"]) == ("x", "y")


def test_faint_lines_are_not_in_the_legend():
    data, _ = drawn(line_chart("t", [Series("raw", [0, 1], [1, 2], faint=True), Series("a", [0, 1], [1, 2])], "x"))
    assert [(each["name"].partition(":")[0], each.get("showlegend", True)) for each in data] == [
        ("a", True),
        ("raw", False),
    ]
    assert data[1]["zorder"] < 0 and "color" not in data[0].get("line", {})


def test_logarithmic_axis():
    _, layout = drawn(line_chart("t", [Series("a", [0, 1, 2], [1, 10, 100])], "x", log=True))
    assert layout["yaxis"]["type"] == "log" and {1, 2, 5, 10, 100} <= set(layout["yaxis"]["tickvals"])
    for values in ([0, 10, 100], [10, 11, 12]):  # impossible, unnecessary
        _, layout = drawn(line_chart("t", [Series("a", [0, 1, 2], values)], "x", log=True))
        assert "type" not in layout["yaxis"]


def test_values_that_are_not_finite_are_left_out():
    nan = math.nan
    data, _ = drawn(line_chart("t", [Series("a", [0, 1, 2], [1, nan, 2]), Series("b", [0], [nan])], "x"))
    assert [(each["name"], each["x"], each["y"]) for each in data] == [("a: 2", [0, 2], [1, 2])]
    assert line_chart("t", [Series("a", [0], [nan])], "x") is None
    assert line_chart("t", [], "x") is None and share_chart("t", [], "x", "y") is None


def test_shares_have_axes_from_0_to_1():
    data, layout = drawn(share_chart("t", [Series("a", [0.2, 0.4], [0.5, 0.6])], "x", "y", diagonal=True))
    assert layout["xaxis"]["range"] == [0, 1] and layout["yaxis"]["range"][0] == 0
    assert data[0]["name"] == "a"
    (line,) = layout["shapes"]
    assert [line[key] for key in ("x0", "y0", "x1", "y1")] == [0, 0, 1, 1]


def test_stacked_bars():
    chart = bar_chart("t", ["p", "q"], [("a", [2, 0]), ("b", [2, 4])], "x", "y", edges=[0, 0.5, 1])
    data, layout = drawn(chart)
    assert layout["barmode"] == "stack" and layout["yaxis"]["rangemode"] == "nonnegative"
    assert [each["y"] for each in data] == [[2, 0], [2, 4]]
    assert data[0]["x"] == [0.25, 0.75] and data[0]["width"] == [0.5, 0.5] and data[0]["customdata"] == ["p", "q"]
    assert chart.description == "t. Bar chart over x; sums: a: 2, b: 6."


def test_circles_grow_with_the_boxes():
    data, layout = drawn(scatter_chart("t", [(0.2, 0.2, 0.1, 1.0), (0.8, 0.9, 0.5, 0.0)], ["a", "b"], "x", "y"))
    assert (data[0]["x"], data[0]["y"], data[0]["hovertext"]) == ([0.8, 0.2], [0.9, 0.2], ["b", "a"])  # active on top
    large, small = data[0]["marker"]["size"]
    assert large > small and data[0]["marker"]["symbol"] == ["circle-open", "circle"]
    assert layout["yaxis"]["range"] == [1, 0]  # downwards


def test_names_in_charts_are_escaped():
    """Plotly takes `<b>` and `<a>` for markup in texts, and `%{x}` for a value in templates of texts."""
    name = '<a href="x">&%{x}'
    (trace,), layout = drawn(line_chart("t", [Series(name, [0, 1], [1, 2])], "<b>x"))
    escaped = '&lt;a href="x"&gt;&amp;%{x}'
    assert trace["name"] == f"{escaped}: 2" and trace["meta"] == escaped and "<a" not in trace["hovertemplate"]
    assert layout["xaxis"]["title"]["text"] == "&lt;b&gt;x"
    bars, _ = drawn(bar_chart("t", ["<b>"], [("<i>", [1])], "x", "y"))
    assert (bars[0]["customdata"], bars[0]["name"], bars[0]["meta"]) == (["&lt;b&gt;"], "&lt;i&gt;", "&lt;i&gt;")
    points, _ = drawn(scatter_chart("t", [(0, 0, 0, 0)], ["<b>"], "x", "y"))
    assert points[0]["hovertext"] == ["&lt;b&gt;"]


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_texts_and_curves(scheme):
    """WCAG 2: 4.5 for text, 3 for graphics."""
    css = (resources.files("detrx.analysis.report") / "templates" / "style.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", light if scheme == "light" else dark))
    for back in ("page", "surface", "notice"):
        for text in ("ink", "second", "muted", "link"):
            assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for index in range(8):
        assert contrast(colours[f"c{index}"], colours["surface"]) >= 3, index
    heat = [int(v) for v in re.search(r"--heat: (\d+) (\d+) (\d+)", light if scheme == "light" else dark).groups()]
    surface = [int(colours["surface"][i : i + 2], 16) for i in (1, 3, 5)]
    full = "#" + "".join(f"{round(0.6 * h + 0.4 * s):02x}" for h, s in zip(heat, surface, strict=True))
    assert contrast(colours["ink"], full) >= 4.5


def found(annotations, results):
    """Of one image, 100 x 100, with classes 3 and 7."""
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}],
        "annotations": [
            {"id": i, "image_id": 1, "area": box[2] * box[3], "iscrowd": crowd, "category_id": label, "bbox": box}
            for i, (label, box, crowd) in enumerate(annotations, start=1)
        ],
    }
    detections = [{"image_id": 1, "category_id": label, "bbox": box, "score": s} for label, box, s in results]
    return Detections(Dataset("d", {1: {}}, truth), detections, "made up")


def test_correct_and_wrong_detections():
    box, other = [10, 10, 20, 20], [60, 60, 30, 30]
    case = found(
        [(3, box, 0), (7, other, 1)],
        [
            (3, box, 0.6),  # takes the object
            (3, box, 0.5),  # again: wrong
            (7, box, 0.9),  # wrong class
            (7, [65, 65, 10, 10], 0.8),  # in a crowd of its class: does not count
            (3, [65, 65, 10, 10], 0.7),  # in a crowd of another class
            (3, box, 0.01),  # below all thresholds
        ],
    )
    assert match_detections(case) == {1: (1, [(0.9, False, 7), (0.7, False, 3), (0.6, True, 3), (0.5, False, 3)])}
    (image,) = compute_statistics(case, 0.65).images
    assert (image.correct, image.wrong, image.missed) == (0, 2, 1)
    (image,) = compute_statistics(case, 0.3).images
    assert (image.correct, image.wrong, image.missed) == (1, 3, 0)
    assert compute_statistics(case, 0.3).classes.tolist() == [[1, 1, 2], [0, 0, 1]]
    (image,) = compute_statistics(case, 0.0).images
    assert (image.correct, image.wrong) == (1, 4)


def test_counts_agree_with_the_drawings():
    """Whether a detection is correct is counted in one way and drawn in another."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        boxes = generator.uniform(10, 50, (24, 4)).round(1).tolist()
        labels = generator.choice([3, 7], 24).tolist()
        scores = generator.permutation(16) / 16
        objects = [(label, box, 0) for label, box in zip(labels[:8], boxes[:8], strict=True)]
        case = found(objects, list(zip(labels[8:], boxes[8:], scores.tolist(), strict=True)))
        (image,) = compute_statistics(case, 0.3).images
        colours = [box.colour for box in boxes_to_draw(case, 1, 0.3)]
        counts = image.correct, image.wrong, image.missed
        assert counts == tuple(colours.count(colour) for colour in (CORRECT, WRONG, MISSED))


def test_no_detections_and_no_objects():
    figures = compute_statistics(found([(3, [0, 0, 10, 10], 0)], []), 0.3)
    assert figures.objects == 1 and figures.scores.average_precision()["AP"] == 0
    assert [(each.correct, each.wrong, each.missed) for each in figures.images] == [(0, 0, 1)]
    figures = compute_statistics(found([], [(3, [0, 0, 10, 10], 0.9)]), 0.3)
    assert math.isnan(figures.scores.average_precision()["AP"]) and figures.confusion[-1].tolist() == [1, 0, 0]


@torch.no_grad()
@pytest.mark.parametrize("routed", [False, True])
def test_query_watch(routed):
    """Mean boxes of the queries, their spread, and the routers."""
    name = "deformable_detr/deformable_detr_digits.py"
    methods = [L(QueryRouting)(router=L(FixedRouter)(passing=0.5))] if routed else []
    model = make_model(name, lambda cfg: cfg.update(methods=methods)).eval()
    boxes = []
    model.decoder.register_forward_hook(lambda decoder, inputs, output: boxes.append(output["main"].boxes[-1][0]))
    watch = QueryWatch(model, model_zoo.get_config(name).model, ["zero"], 0.0)
    with pytest.raises(ValueError, match="the dataset has no images"):
        watch.figures()
    for size in ((64, 64), (64, 96), (96, 64)):
        inputs = make_input(*size)
        watch.observe(inputs, model([inputs])[0]["instances"])
    figures = watch.figures()
    expected = torch.stack(boxes)
    assert expected.shape == (3, 10, 4)
    torch.testing.assert_close(torch.tensor(figures["boxes"]), expected.mean(0), rtol=1e-4, atol=1e-5)
    spread = expected[..., :2].std(0, unbiased=False)
    torch.testing.assert_close(torch.tensor(figures["spread"]), spread, rtol=1e-3, atol=1e-4)
    assert figures["activation"]["images"] == 3 and figures["activation"]["queries"] == 10
    assert len(figures["tables"]) == routed
    for table in figures["tables"]:
        assert table.rows == ((0, "full", 5.0, 5, 5), (1, "self_attn", 5.0, 5, 5), (2, "cross_attn", 5.0, 5, 5))
