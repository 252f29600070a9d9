"""What scripts in docs/ make: the picture of the layers, and the page of the public API."""

from pathlib import Path

import pytest

from tests.docs.scripts import script

layers, api = script("draw_layers"), script("list_api")


def test_imports_point_downwards():
    """Rooms import only rooms below them; a cycle is an error that names it."""
    floors = layers.levels(layers.arrows())
    assert floors["ops"] < floors["layers"] < floors["modeling"] < floors["projects"] < floors["cli"]


def test_the_picture_is_up_to_date():
    layers.main(["--check"])


def test_the_page_of_the_api_is_up_to_date():
    api.main(["--check"])


def tree(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / "detrx" / name.replace("__", "/").replace("INIT", "__init__")
        path = path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_which_imports_count(tmp_path: Path):
    root = tree(
        tmp_path,
        bottom="import os\n",
        lazy="def f():\n    from detrx import bottom\n",
        typed="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from detrx.top import a\n",
        top__INIT="from . import a\nfrom ..lazy import f\n",
        top__a="from detrx.typed import x\nfrom .b import y\n",
        top__b="",
    )
    graph = layers.arrows(root)
    assert graph == {"bottom": set(), "lazy": {"bottom"}, "typed": set(), "top": {"lazy", "typed"}}
    assert layers.levels(graph) == {"bottom": 0, "lazy": 1, "typed": 0, "top": 2}


def test_a_cycle_is_named(tmp_path: Path):
    root = tree(tmp_path, a="import detrx.b\n", b="import detrx.c\n", c="from detrx.a import x\n")
    with pytest.raises(ValueError, match="rooms import each other: a -> b -> c -> a"):
        layers.levels(layers.arrows(root))


def test_arrows_that_longer_ways_stand_for_are_not_drawn():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert layers.direct(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_same_imports_give_the_same_picture(tmp_path: Path):
    root = tree(tmp_path, a="import detrx.b\n", b="")
    layers.draw(tmp_path / "first.svg", root)
    layers.draw(tmp_path / "second.svg", root)
    first = (tmp_path / "first.svg").read_text()
    assert first == (tmp_path / "second.svg").read_text() and "a imports b; b imports nothing" in first
