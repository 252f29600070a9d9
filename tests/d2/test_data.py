"""Contract of the catalogs, samplers and loaders of `detrx.d2.data`; the sequences are Detectron2's."""

import gc
import itertools
import logging
import pickle

import pytest
import torch

from detrx.d2.data import (
    DatasetCatalog,
    DatasetFromList,
    InferenceSampler,
    MapDataset,
    MetadataCatalog,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)

SIZES = [(4, 3), (3, 4), (5, 5), (9, 3), (2, 8), (7, 6), (3, 3), (8, 2)]
DICTS = [{"id": i, "width": w, "height": h} for i, (w, h) in enumerate(SIZES)]


def take(iterable, n):
    return list(itertools.islice(iter(iterable), n))


def ids(batches):
    return [[sample["id"] for sample in batch] for batch in batches]


def same(sample):
    return sample


def odd_only(sample):
    return sample if sample["id"] % 2 else None


@pytest.fixture
def register():
    """A function that registers a dataset for the time of one test."""
    names = []

    def add(name, dicts, **metadata):
        DatasetCatalog.register(name, lambda: dicts)
        names.append(name)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield add
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def image(i, *categories, **annotation):
    return {"image_id": i, "annotations": [{"category_id": c, **annotation} for c in categories]}


def test_dataset_catalog(register):
    register("d2_test", [1, 2])
    assert "d2_test" in DatasetCatalog.list() and DatasetCatalog.get("d2_test") == [1, 2]
    with pytest.raises(AssertionError, match="d2_test"):
        register("d2_test", [])
    with pytest.raises(KeyError, match=r"d2_none.*d2_test"):
        DatasetCatalog.get("d2_none")
    with pytest.raises(AssertionError):
        DatasetCatalog.register("d2_other", [1])


def test_metadata():
    metadata = MetadataCatalog.get("d2_meta")
    try:
        assert metadata.name == "d2_meta" and MetadataCatalog.get("d2_meta") is metadata
        assert metadata.set(a=1, b=[2]) is metadata and metadata.a == 1
        metadata.a = 1
        with pytest.raises(AssertionError):
            metadata.a = 2
        assert metadata.get("c") is None and metadata.get("c", 5) == 5 and not hasattr(metadata, "c")
        with pytest.raises(AttributeError) as error:
            _ = metadata.missing_fact
        assert "missing_fact" in str(error.value) and "d2_meta" in str(error.value)
        assert pickle.loads(pickle.dumps(metadata)).b == [2]
    finally:
        MetadataCatalog.remove("d2_meta")
    assert "d2_meta" not in MetadataCatalog.list()


def test_dataset_dicts(register):
    dicts = [image(0, 0, 1), image(1), image(2, 1, iscrowd=1), image(3, 2)]
    register("d2_a", dicts, thing_classes=["a", "b", "c"])
    register("d2_b", dicts[:1], thing_classes=["a", "b", "c"])
    register("d2_c", dicts[:1], thing_classes=["a", "b"])
    register("d2_empty", [])
    assert [d["image_id"] for d in get_detection_dataset_dicts("d2_a")] == [0, 3]
    assert [d["image_id"] for d in get_detection_dataset_dicts(["d2_a"], filter_empty=False)] == [0, 1, 2, 3]
    assert [d["image_id"] for d in get_detection_dataset_dicts(["d2_a", "d2_b"])] == [0, 3, 0]
    with pytest.raises(ValueError):
        get_detection_dataset_dicts(["d2_a", "d2_c"])
    assert len(get_detection_dataset_dicts(["d2_a", "d2_c"], check_consistency=False)) == 3
    with pytest.raises(AssertionError, match="d2_empty"):
        get_detection_dataset_dicts(["d2_empty"])
    with pytest.raises(KeyError, match="d2_unknown"):
        get_detection_dataset_dicts("d2_unknown")


def test_dataset_dicts_that_leave_nothing_or_have_other_classes(register):
    register("d2_crowds", [image(7, 0, iscrowd=1)])
    with pytest.raises(AssertionError, match="d2_crowds"):
        get_detection_dataset_dicts("d2_crowds")
    register("d2_range", [image(7, 0, 5)], thing_classes=["a", "b"])
    with pytest.raises(AssertionError, match="category_id=5"):
        get_detection_dataset_dicts("d2_range")


def test_training_sampler():
    assert take(TrainingSampler(7, seed=3), 16) == [5, 3, 4, 6, 0, 2, 1, 2, 6, 3, 1, 5, 0, 4, 0, 6]
    assert take(TrainingSampler(5, shuffle=False, seed=3), 7) == [0, 1, 2, 3, 4, 0, 1]
    sampler = TrainingSampler(100)
    assert sorted(take(sampler, 100)) == list(range(100))
    assert take(sampler, 5) == take(sampler, 5)
    with pytest.raises(TypeError):
        TrainingSampler(3.0)
    with pytest.raises(ValueError, match="-1"):
        TrainingSampler(-1)


def test_repeat_factor_sampler():
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.5, 1.2, 1.0, 3.0]), seed=11)
    assert take(sampler, 24) == [0, 4, 3, 2, 1, 4, 1, 4, 1, 3, 4, 1, 4, 0, 1, 2, 4, 1, 0, 4, 2, 4, 1, 4]
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.5, 1.2]), shuffle=False, seed=11)
    assert take(sampler, 14) == [0, 1, 1, 1, 2, 0, 1, 1, 2, 0, 1, 1, 1, 2]


def test_repeat_factors():
    dicts = [image(i, *c) for i, c in enumerate([(0,), (0, 1, 1), (0,), (0, 2), (), (0, 1), (0,), (0,), (0,), (0,)])]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    common, rare, rarest = 1.0, 2.5, 5.0  # threshold .5; frequencies .9, .2 and .1
    expected = torch.tensor([common, rare, common, rarest, common, rare, *[common] * 4])
    assert factors(dicts, 0.5, sqrt=False).equal(expected)
    assert factors(dicts, 0.5).allclose(expected.sqrt())


def test_inference_sampler():
    assert list(InferenceSampler(5)) == [0, 1, 2, 3, 4] and len(InferenceSampler(5)) == 5
    with pytest.raises(AssertionError):
        InferenceSampler(0)


def test_dataset_from_list_gives_copies():
    items = [{"a": [1]}, {"a": [2, 3]}, {"a": []}]
    for options in ({}, {"copy": False}):
        dataset = DatasetFromList(items, **options)
        assert len(dataset) == 3 and [dataset[i] for i in range(3)] == items
        dataset[1]["a"].append(9)
        assert dataset[1] == {"a": [2, 3]}
        assert pickle.loads(pickle.dumps(dataset))[2] == {"a": []}


def test_dataset_from_list_does_not_keep_the_objects():
    dataset = DatasetFromList([{"id": i} for i in range(100)])
    held = [o for o in gc.get_objects() if type(o) is dict and o.keys() == {"id"} and o["id"] == 77]
    assert len(dataset) == 100 and not held


def test_map_dataset():
    assert MapDataset(DICTS, lambda d: d["id"] * 2)[3] == 6
    dataset = MapDataset(DICTS[:6], odd_only)
    assert len(dataset) == 6 and [dataset[i]["id"] for i in range(6)] == [1, 1, 1, 3, 5, 5]
    assert pickle.loads(pickle.dumps(dataset))[1]["id"] == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_test_loader(num_workers):
    loader = build_detection_test_loader(DICTS[:5], mapper=same, batch_size=2, num_workers=num_workers)
    assert len(loader) == 3 and ids(loader) == [[0, 1], [2, 3], [4]]
    assert ids(build_detection_test_loader(DICTS[:2], mapper=None)) == [[0], [1]]


def test_how_often_each_class_occurs_is_logged(register, caplog):
    register("d2_histogram", [image(0, 0, 1, 1), image(1, 1)], thing_classes=["apple", "berry"])
    with caplog.at_level(logging.INFO):
        get_detection_dataset_dicts("d2_histogram")
    assert "apple" in caplog.text and "berry" in caplog.text
