import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from detrx.analysis import Box, compare_with_truth, contact_sheet, draw_boxes
from detrx.analysis.visualize import CORRECT, MISSED, TRUTH, WRONG, captioned, fitted

NAMES = ["cat", "dog"]


def compare(truth, detections, **options):
    """truth: (box, class); detections: (box, class, score). Returns {label: colour} of what would be drawn."""
    boxes = compare_with_truth(
        torch.tensor([t[0] for t in truth]).float().reshape(-1, 4),
        torch.tensor([t[1] for t in truth], dtype=torch.int64),
        torch.tensor([d[0] for d in detections]).float().reshape(-1, 4),
        torch.tensor([d[1] for d in detections], dtype=torch.int64),
        torch.tensor([d[2] for d in detections]).float(),
        NAMES,
        **options,
    )
    return [(box.label, box.colour) for box in boxes]


A, NEAR_A, B = [0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 70, 70]


def test_correct_wrong_class_misplaced_and_missed():
    assert compare([(A, 0)], [(NEAR_A, 0, 0.9)]) == [("", TRUTH), ("cat 0.90", CORRECT)]
    assert compare([(A, 0)], [(NEAR_A, 1, 0.9)]) == [("cat", MISSED), ("dog 0.90", WRONG)]
    assert compare([(A, 0)], [(B, 0, 0.9)]) == [("cat", MISSED), ("cat 0.90", WRONG)]
    assert compare([(A, 0)], [(NEAR_A, 0, 0.9)], iou_threshold=0.95) == [("cat", MISSED), ("cat 0.90", WRONG)]


def test_an_object_is_claimed_once_by_the_best_score():
    found = compare([(A, 0)], [(A, 0, 0.5), (NEAR_A, 0, 0.8)])
    assert found == [("", TRUTH), ("cat 0.50", WRONG), ("cat 0.80", CORRECT)]


def test_second_detection_takes_the_object_that_is_still_free():
    other = [2, 0, 12, 10]
    found = compare([(A, 0), (other, 0)], [(A, 0, 0.9), (A, 0, 0.8)])
    assert [colour for _, colour in found] == [TRUTH, TRUTH, CORRECT, CORRECT]


def test_nothing_to_compare():
    assert compare([], []) == []
    assert compare([], [(A, 1, 0.7)]) == [("dog 0.70", WRONG)]
    assert compare([(A, 1)], []) == [("dog", MISSED)]


def test_classes_beyond_the_names_are_called_by_their_number():
    assert compare([(A, 5)], [(B, 7, 0.9), (A, 1, 0.4)]) == [("5", MISSED), ("dog 0.40", WRONG), ("7 0.90", WRONG)]
    assert compare([(A, 5)], [(A, 5, 0.9)]) == [("", TRUTH), ("5 0.90", CORRECT)]


def pixels_of(image, colour):
    y, x = np.nonzero((np.asarray(image) == ImageColor.getrgb(colour)).all(axis=-1))
    return x, y


def test_box_is_drawn_around_the_object_at_the_enlarged_place():
    image = Image.new("RGB", (100, 80))
    drawn = draw_boxes(image, [Box((20, 30, 60, 70), colour="#00ff00")], min_side=320)
    assert drawn.size == (400, 320)
    x, y = pixels_of(drawn, "#00ff00")
    line = 2
    assert (x.min(), y.min(), x.max(), y.max()) == (80 - line, 120 - line, 240 + line - 1, 280 + line - 1)
    inside = (x >= 80) & (x < 240) & (y >= 120) & (y < 280)
    assert not inside.any()
    assert image.getbbox() is None  # the original is untouched


def test_large_images_keep_their_size_and_dashes_have_gaps():
    image = Image.new("RGB", (700, 600))
    full = draw_boxes(image, [Box((100, 100, 400, 400), colour="#00ff00")])
    dashed = draw_boxes(image, [Box((100, 100, 400, 400), colour="#00ff00", dashed=True)])
    assert full.size == dashed.size == (700, 600)
    ratio = len(pixels_of(dashed, "#00ff00")[0]) / len(pixels_of(full, "#00ff00")[0])
    assert 0.3 < ratio < 0.8


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (80, 0, 100, 20), (0, 60, 20, 80), (0, 0, 100, 80)])
def test_labels_stay_inside_the_image(box):
    image = Image.new("RGB", (100, 80))
    plain = draw_boxes(image, [Box(box, colour="#00ff00")])
    labelled = draw_boxes(image, [Box(box, "elephant 0.99", colour="#00ff00")])
    added = len(pixels_of(labelled, "#00ff00")[0]) - len(pixels_of(plain, "#00ff00")[0])
    assert added > 80 * 12  # the plate of a label of that length


@pytest.mark.parametrize(
    ("size", "drawn_size"),
    [
        ((1, 1), (480, 480)),
        ((4000, 2), (4000, 2)),
        ((30, 9000), (30, 9000)),
        ((10, 80), (480, 3840)),
        ((20, 400), (180, 3600)),
    ],
)
def test_drawings_of_extreme_shapes_do_not_explode(size, drawn_size):
    drawn = draw_boxes(Image.new("RGB", size), [Box((0, 0, *size), "elephant 0.99")])
    assert drawn.size == drawn_size
    cell = fitted(drawn, 400)
    assert cell.width == 400 and 1 <= cell.height <= 1600
    sheet = contact_sheet([drawn, Image.new("RGB", (50, 30))], legend=False)
    assert sheet.width < 1000 and sheet.height < 2000


@pytest.mark.parametrize("text", ["two\nlines", "\udcff", "größe 猫", "\t\0", ""])
def test_text_of_any_kind_is_drawn_in_one_line(text):
    image = Image.new("RGB", (400, 400))
    drawn = draw_boxes(image, [Box((100, 100, 300, 300), text)])
    assert drawn.size == (800, 800)
    assert captioned(image, text).height == captioned(image, "plain").height
    assert contact_sheet([image], title=text, legend=False).width == 416


def test_boxes_with_corners_the_wrong_way_round_are_drawn():
    """Annotations with a negative width or height are left out of training, and can still be looked at."""
    image = Image.new("RGB", (700, 600))
    mirrored = draw_boxes(image, [Box((400, 300, 100, 100), colour="#00ff00")])
    assert mirrored.tobytes() == draw_boxes(image, [Box((100, 100, 400, 300), colour="#00ff00")]).tobytes()


def test_contact_sheet_places_images_in_rows():
    colours = ["#010203", "#112233", "#445566", "#778899", "#aabbcc"]
    cells = [Image.new("RGB", (50, 30), colour) for colour in colours]
    sheet = contact_sheet(cells, columns=2, title="five", cell_width=100)
    corners = []
    for colour in colours:
        x, y = pixels_of(sheet, colour)
        assert len(x) == 100 * 60
        corners.append((x.min(), y.min()))
    columns, rows = sorted({x for x, _ in corners}), sorted({y for _, y in corners})
    assert corners == [(columns[i % 2], rows[i // 2]) for i in range(5)]
    assert len(rows) == 3
    for colour in (CORRECT, WRONG, MISSED):  # the legend
        assert pixels_of(sheet, colour)[1].max() < rows[0]
    assert len(pixels_of(contact_sheet(cells, legend=False), WRONG)[0]) == 0
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])


def test_caption_is_below_and_loses_its_beginning_where_it_is_too_long():
    image = Image.new("RGB", (120, 50), (0, 0, 255))
    short, long = captioned(image, "a.png"), captioned(image, "a/very/long/folder/in/front/of/a.png")
    for sheet in (short, long):
        assert sheet.width == 120 and sheet.height > 60
        assert sheet.crop((0, 0, 120, 50)).getcolors() == [(6000, (0, 0, 255))]
    below = (0, 50, 120, short.height)
    assert short.crop(below).tobytes() != long.crop(below).tobytes()
    margin = long.crop((116, 50, 120, long.height))
    assert len(margin.getcolors()) == 1  # the text ends before the border
