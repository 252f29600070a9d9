"""Random COCO files and detections for property tests: whatever the format allows."""

import string
from typing import Any, NamedTuple

from hypothesis import strategies as st

IDS = st.one_of(
    st.integers(-3, 12),
    st.integers(2**53 - 1, 2**53 + 3),
    st.integers(2**63 - 2, 2**64 + 2),
    st.integers(-3, 12).map(float),
    st.integers(-3, 12).map(str),
    st.text(string.printable + "äß漢", max_size=3),
)
"""Numbers of all sizes, with and without a fraction of 0, and text. 1 and "1" are different, 1 and 1.0 are not."""

# Multiples of 1/2, which every part of the way computes with exactly; few values, so that boxes coincide.
SIDES = st.sampled_from([0, 0.5, 4, 10, 20, 31.5, 32, 96, 150])
CORNERS = st.sampled_from([0, 1, 2.5, 10, 60])
BOXES = st.tuples(CORNERS, CORNERS, SIDES, SIDES).map(list)
SCORES = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1]), st.floats(0, 1, width=32))
LIMITS = st.one_of(st.integers(1, 12), st.just(100))


class Case(NamedTuple):
    """The content of an annotation file, and detections with its ids."""

    truth: dict[str, Any]
    results: list[dict[str, Any]]


def unique_ids(least: int, most: int) -> st.SearchStrategy[list]:
    return st.lists(IDS, min_size=least, max_size=most, unique=True)


@st.composite
def cases(draw: st.DrawFn, most_annotations: int = 10, most_results: int = 16) -> Case:
    """Crowds, missing and other areas, images and classes without boxes, ids of any kind in any order, equal scores."""
    image_ids, category_ids = draw(unique_ids(1, 4)), draw(unique_ids(1, 3))
    annotations = []
    for annotation_id in draw(unique_ids(0, most_annotations)):
        entry = {
            "id": annotation_id,
            "image_id": draw(st.sampled_from(image_ids)),
            "category_id": draw(st.sampled_from(category_ids)),
            "bbox": draw(BOXES),
        }
        entry |= draw(st.sampled_from([{}, {"iscrowd": 0}, {"iscrowd": 0}, {"iscrowd": 1}, {"iscrowd": None}]))
        entry |= draw(st.sampled_from([{}, {"area": None}, {"area": 0}, {"area": 50.5}, {"area": 1024}, {"area": 2e4}]))
        annotations.append(entry)
    known = [entry["bbox"] for entry in annotations]
    boxes = st.one_of(BOXES, st.sampled_from(known)) if known else BOXES
    results = draw(
        st.lists(
            st.fixed_dictionaries(
                {
                    "image_id": st.sampled_from(image_ids),
                    "category_id": st.sampled_from(category_ids),
                    "bbox": boxes,
                    "score": SCORES,
                }
            ),
            max_size=most_results,
        )
    )
    images = [{"id": i, "file_name": f"{k}.png", "width": 300, "height": 200} for k, i in enumerate(image_ids)]
    categories = [
        {"id": i, "name": draw(st.sampled_from(["a", "b", f"class {k}"]))} for k, i in enumerate(category_ids)
    ]
    return Case({"images": images, "annotations": annotations, "categories": categories}, results)
