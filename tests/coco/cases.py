"""Annotations and detections in COCO's formats for the tests of the evaluation."""

import numpy as np


def ground_truth(annotations, images=(1,), categories=None):
    """`annotations`: (image id, category id, box, further keys)."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 200, "width": 300} for i in images],
        "annotations": [
            {"id": k, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            | further
            for k, (image, category, box, further) in enumerate(annotations, start=1)
        ],
        "categories": [{"id": i, "name": name} for i, name in (categories or {3: "cup", 8: "fork"}).items()],
    }


def found(*rows):
    """Detections of rows (image id, category id, box, score)."""
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def random_case(seed, images=60):
    """Crowds, areas that are not those of the boxes, equal scores, more than 100 detections in some images, images
    without either, and classes without ground truth (11: detected, 13: not)."""
    rng = np.random.RandomState(seed)
    annotations, detections = [], []
    for image in range(images):
        for _ in range(rng.randint(0, 12)):
            size = np.exp(rng.uniform(np.log(5), np.log(150), 2))
            box = [*rng.uniform(0, 100, 2), *size]
            category = int(rng.choice([2, 3, 5, 7]))
            further = {"area": float(size.prod() * rng.choice([1.0, 0.7])), "iscrowd": int(rng.rand() < 0.1)}
            annotations.append((image, category, [float(v) for v in box], further))
            for _ in range(rng.randint(0, 4)):
                noisy = np.array(box) + rng.normal(0, 0.06, 4) * np.tile(size, 2)
                label = category if rng.rand() < 0.85 else int(rng.choice([2, 3, 5, 7, 11]))
                detections.append((image, label, noisy.tolist(), round(rng.rand(), 1)))
        for _ in range(rng.randint(0, 400) if image % 9 == 0 else 2):
            box = rng.uniform(5, 90, 4).tolist()
            detections.append((image, int(rng.choice([2, 3, 5, 7, 11])), box, round(rng.rand(), 1)))
    categories = {i: f"class {i}" for i in (2, 3, 5, 7, 11, 13)}
    return ground_truth(annotations, range(images + 2), categories), found(*detections)
