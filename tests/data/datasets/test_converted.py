"""Annotations that are converted when they are first asked for."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from detrx.data.datasets.converted import converted_file


class Converter:
    """Counts how often it converts."""

    def __init__(self, folder: Path):
        self.folder, self.calls = folder, 0
        self.source = folder / "table.json"
        self.source.write_text("[1]")

    def __call__(self) -> dict:
        self.calls += 1
        time.sleep(0.05)
        return {"content": json.loads(self.source.read_text())}

    def file(self) -> Path:
        return converted_file("a_train", self.folder, [self.source], self)


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Converter:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    return Converter(tmp_path / "data")


def test_converts_once_and_again_when_the_source_has_changed(converter: Converter):
    file = converter.file()
    assert file.parent == converter.folder / "detrx" and json.loads(file.read_text()) == {"content": [1]}
    assert converter.file() == file and converter.calls == 1
    converter.source.write_text("[1, 2]")
    assert json.loads(converter.file().read_text()) == {"content": [1, 2]} and converter.calls == 2


def test_changes_that_keep_the_size_are_noticed(converter: Converter):
    assert json.loads(converter.file().read_text()) == {"content": [1]}
    converter.source.write_text("[2]")
    before = converter.source.stat().st_mtime_ns
    assert json.loads(converter.file().read_text()) == {"content": [2]} and converter.calls == 2
    os.utime(converter.source, ns=(before + 1, before + 1))
    converter.file()
    assert converter.calls == 3


def test_one_converts_and_the_others_wait(converter: Converter):
    files = []
    threads = [threading.Thread(target=lambda: files.append(converter.file())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert converter.calls == 1 and len(files) == 4 and len(set(files)) == 1


def test_a_failure_leaves_nothing_behind(converter: Converter):
    converter.source.write_text("{")
    with pytest.raises(ValueError):
        converter.file()
    assert not list((converter.folder / "detrx").glob("*.json"))


def test_folder_that_cannot_be_written(converter: Converter, tmp_path: Path):
    (converter.folder / "detrx").write_text("no folder can be made here")
    file = converter.file()
    assert file.parent == tmp_path / "cache" / "detrx" and converter.file() == file and converter.calls == 1


def test_no_place_to_write(converter: Converter, tmp_path: Path):
    for file in (converter.folder / "detrx", tmp_path / "cache"):
        file.write_text("no folder can be made here")
    with pytest.raises(PermissionError, match=r"annotations of a_train cannot be written: neither .*data/detrx nor .*"):
        converter.file()


def test_missing_source(converter: Converter):
    converter.source.unlink()
    with pytest.raises(FileNotFoundError, match=r"annotation file .*table\.json does not exist"):
        converter.file()
