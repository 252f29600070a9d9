import pytest

from detrx.atomic import replacing, write_atomically


def test_a_file_takes_the_place_of_the_earlier_one(tmp_path):
    path, temporary = tmp_path / "a.txt", tmp_path / ".a.1.txt"
    path.write_text("before")
    with replacing(path, temporary):
        temporary.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_earlier_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, lambda file: file.write(b"before"))

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    with pytest.raises(FileNotFoundError), replacing(path, tmp_path / "never_written"):
        pass
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
