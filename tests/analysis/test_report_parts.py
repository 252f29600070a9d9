"""Parts of the report: charts, colours, what is counted in images, what queries do."""

import json
import math
import re
import xml.etree.ElementTree as ET
from importlib import resources

import numpy as np
import pytest
import torch

from detrx import model_zoo
from detrx.analysis.report.charts import MOST_POINTS, Series, bar_chart, line_chart, scatter_chart
from detrx.analysis.report.detection_statistics import boxes_to_draw, break_down, judge
from detrx.analysis.report.detections import Dataset, Detections
from detrx.analysis.report.query_watch import QueryWatch
from detrx.analysis.visualize import CORRECT, MISSED, WRONG
from detrx.d2.config import LazyCall as L
from detrx.projects.qr_detr import FixedRouter, QueryRouting
from tests.modeling.small import make_input, make_model


def drawn(chart):
    svg = ET.fromstring(chart.svg)
    return svg, json.loads(svg.get("data-chart"))


def polyline(svg):
    return [tuple(map(float, point.split(","))) for point in svg.find("polyline").get("points").split()]


def test_line_goes_from_corner_to_corner():
    chart = line_chart("t", [Series("a", [0, 5, 10], [1, 3, 2])], "x")
    svg, data = drawn(chart)
    (x0, y0), (x1, y1), (x2, y2) = polyline(svg)
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 > y2 > y1  # pixels grow downwards
    assert (data["xAxis"]["begin"], data["yAxis"]["begin"]) == (x0, y0)
    assert data["series"][0]["y"] == [1, 3, 2]
    assert chart.legend == [("c0", "a: 2")]


def test_logarithmic_axis():
    series = [Series("a", [0, 1, 2], [1, 10, 100])]
    svg, data = drawn(line_chart("t", series, "x", log=True))
    (_, y0), (_, y1), (_, y2) = polyline(svg)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2) and data["yAxis"]["log"]
    for values in ([0, 10, 100], [10, 11, 12]):  # cannot be, need not be
        assert not drawn(line_chart("t", [Series("a", [0, 1, 2], values)], "x", log=True))[1]["yAxis"]["log"]


def test_values_that_are_not_finite_are_left_out():
    nan = math.nan
    svg, data = drawn(line_chart("t", [Series("a", [0, 1, 2], [1, nan, 2]), Series("b", [0], [nan])], "x"))
    assert len(polyline(svg)) == 2 and [each["name"] for each in data["series"]] == ["a"]
    assert line_chart("t", [Series("a", [0], [nan])], "x") is None
    assert line_chart("t", [], "x") is None


def test_one_value_and_equal_values_are_drawn():
    for values in ([5.0], [5.0, 5.0], [0.0, 0.0]):
        points = polyline(drawn(line_chart("t", [Series("a", range(len(values)), values)], "x"))[0])
        assert len(points) == len(values) and all(math.isfinite(v) for point in points for v in point)


def test_long_curves_are_thinned():
    _, data = drawn(line_chart("t", [Series("a", np.arange(5000), np.arange(5000))], "x"))
    x = data["series"][0]["x"]
    assert len(x) == MOST_POINTS and (x[0], x[-1]) == (0, 4999)


def test_stacked_bars():
    svg, data = drawn(bar_chart("t", ["p", "q"], [("a", [2, 0]), ("b", [2, 4])], "x", "y"))
    first, second = (re.findall(r"M([\d.]+),([\d.]+)H([\d.]+)V([\d.]+)", each.get("d")) for each in svg.findall("path"))
    assert len(first) == 1 and len(second) == 2  # nothing is drawn for 0
    assert second[0][1] == first[0][3]  # b of the first bar stands on a
    assert second[0][3] == second[1][3]  # 2 + 2 is as high as 4
    assert data["labels"] == ["p", "q"]


def test_circles_grow_with_the_boxes():
    svg, _ = drawn(scatter_chart("t", [(0.2, 0.2, 0.1, 1.0), (0.8, 0.9, 0.5, 0.0)], ["a", "b"], "x", "y"))
    circles = {each.get("class"): each for each in svg.findall("circle")}
    small, large = circles["point"], circles["point idle"]
    assert float(large.get("r")) > float(small.get("r"))
    assert float(large.get("cx")) > float(small.get("cx")) and float(large.get("cy")) > float(small.get("cy"))


def test_names_in_charts_are_escaped():
    chart = line_chart("<t>", [Series('"<a>&', [0, 1], [1, 2])], "<x>")
    svg, data = drawn(chart)  # ET.fromstring would fail
    assert data["series"][0]["name"] == '"<a>&' and "<a>" not in chart.svg
    assert svg.get("aria-label").startswith("<t>. ")


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
    assert judge(case) == {1: (1, [(0.9, False, 7), (0.7, False, 3), (0.6, True, 3), (0.5, False, 3)])}
    (image,) = break_down(case, 0.65).images
    assert (image.correct, image.wrong, image.missed) == (0, 2, 1)
    (image,) = break_down(case, 0.3).images
    assert (image.correct, image.wrong, image.missed) == (1, 3, 0)
    assert break_down(case, 0.3).classes.tolist() == [[1, 1, 2], [0, 0, 1]]
    (image,) = break_down(case, 0.0).images
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
        (image,) = break_down(case, 0.3).images
        colours = [box.colour for box in boxes_to_draw(case, 1, 0.3)]
        counts = image.correct, image.wrong, image.missed
        assert counts == tuple(colours.count(colour) for colour in (CORRECT, WRONG, MISSED))


def test_no_detections_and_no_objects():
    figures = break_down(found([(3, [0, 0, 10, 10], 0)], []), 0.3)
    assert figures.objects == 1 and figures.scores.average_precision()["AP"] == 0
    assert [(each.correct, each.wrong, each.missed) for each in figures.images] == [(0, 0, 1)]
    figures = break_down(found([], [(3, [0, 0, 10, 10], 0.9)]), 0.3)
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
