"""Which files the demo reads and writes: names, folders, links, originals, and files that cannot be read."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.cli.demo_files import paint, run


def test_images_of_the_same_name_do_not_overwrite_each_other(folder, weights, tmp_path):
    for name in ("more/a.png", "a_3.png", "more/A.webp"):
        paint(folder.parent / name, (5, 5, 50, 30))
    files = [folder / "a.png", *(folder.parent / name for name in ("more/a.png", "a_3.png", "more/A.webp"))]
    run("--weights", weights, "--input", *files, "--output", tmp_path / "out")
    names = ["A_4.png", "a.png", "a_2.png", "a_3.png", "detections.json"]
    assert sorted(p.name for p in tmp_path.joinpath("out").iterdir()) == names
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 4


def test_folders_of_a_pattern_are_kept(folder, weights, tmp_path):
    paint(tmp_path / "more" / "deep" / "c.png", (5, 5, 50, 30))
    run("--weights", weights, "--input", tmp_path / "[im]*" / "**" / "*.png", "--output", tmp_path / "out")
    drawn = sorted(str(p.relative_to(tmp_path / "out")) for p in tmp_path.joinpath("out").rglob("*.png"))
    assert drawn == ["images/a.png", "images/b.png", "more/deep/c.png"]


@pytest.mark.parametrize(
    "name", ["größe (neu)", "it's 50 %", "a=b", "-dash", "line\nbreak", b"\xff\xfe".decode("utf-8", "surrogateescape")]
)
def test_names_of_all_kinds(name, weights, tmp_path, capsys):
    paint(tmp_path / name / f"{name}.png", (5, 5, 50, 30))
    run("--weights", weights, "--input", tmp_path / name, "--output", tmp_path / f"{name} out")
    assert (tmp_path / f"{name} out" / f"{name}.png").is_file()
    (result,) = json.loads((tmp_path / f"{name} out" / "detections.json").read_text())
    assert Path(result["file_name"]) == tmp_path / name / f"{name}.png"


def test_the_longest_names(weights, tmp_path):
    stems = ["ä" * 125, "ä" * 124 + "a"]  # with the suffix, 254 and 253 of the 255 bytes that there may be
    for stem in stems:
        paint(tmp_path / "images" / f"{stem}.png", (5, 5, 50, 30))
    run("--weights", weights, "--input", tmp_path / "images", "--output", tmp_path / "out")
    assert sorted(len(p.stem) for p in tmp_path.joinpath("out").glob("*.png")) == [90, 92]


@pytest.mark.parametrize("how", ["same", "link", "linked file", "hard link"])
def test_originals_are_not_replaced(how, folder, weights, tmp_path):
    before = (folder / "a.png").read_bytes()
    output = tmp_path / "out"
    if how == "same":
        output = folder
    elif how == "link":
        output.symlink_to(folder)
    else:
        output.mkdir()
        link = os.symlink if how == "linked file" else os.link
        link(folder / "a.png", output / "a.png")
    with pytest.raises(
        SystemExit, match=r"error: drawings in .* could replace the input .*a\.png.*choose another output folder"
    ):
        run("--weights", weights, "--input", folder, "--output", output)
    assert (folder / "a.png").read_bytes() == before and not (output / "detections.json").exists()


def test_output_inside_the_input_folder(folder, weights):
    for _ in range(2):  # the second run does not take the drawings of the first for images
        run("--weights", weights, "--input", folder, "--output", folder / "out", "--contact-sheet")
    names = ["a.png", "b.png", "contact_sheet.png", "detections.json"]
    assert sorted(p.name for p in (folder / "out").iterdir()) == names


def test_an_image_called_like_the_contact_sheet(folder, weights, tmp_path):
    (folder / "a.png").rename(folder / "contact_sheet.png")
    run("--weights", weights, "--input", folder, "--output", tmp_path / "out", "--contact-sheet")
    names = ["b.png", "contact_sheet.png", "contact_sheet_2.png", "detections.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_files_are_named_and_left_out(batch_size, folder, weights, tmp_path, capsys):
    content = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(content[:60])
    (folder / "c.png").write_bytes(b"")
    (folder / "d.png").write_text("no image")
    (folder / "e.png").mkdir()
    (folder / "f.png").symlink_to("nowhere")
    (folder / "g.png").write_bytes(content)
    os.mkfifo(folder / "pipe.png")  # opening it would wait for somebody to write
    with pytest.raises(SystemExit, match=r"error: image .*b\.png cannot be read: .* \(and 4 more, named above\)$"):
        run("--weights", weights, "--input", folder, "--output", tmp_path / "out", "--batch-size", batch_size)
    reported = [line for line in capsys.readouterr().err.split("\n") if "left out: " in line]
    assert [re.search(r"([a-z])\.png", line)[1] for line in reported] == list("bcdef")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "detections.json", "g.png"]
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [(Path(r["file_name"]).name, r["image_id"]) for r in results] == [("a.png", 1), ("g.png", 7)]
