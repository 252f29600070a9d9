import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
import torch

from detrx.atomic import replacing, write_atomically
from detrx.errors import UnavailableError, UserError


def write(path, content=b"after"):
    write_atomically(path, lambda file: file.write(content))


def test_a_file_takes_the_place_of_the_earlier_one(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_text("before")
    with replacing(path, suffix=".onnx") as temporary:
        assert os.path.dirname(temporary) == str(tmp_path) and temporary.endswith(".onnx")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_earlier_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    write(path, b"before")

    def fail(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    meeting = threading.Barrier(8, timeout=30)

    def begin_together(file, letter):
        file.write(letter * 10_000)
        file.flush()
        meeting.wait()
        file.write(letter * 10_000)

    errors = []

    def run(letter):
        try:
            write_atomically(path, lambda file: begin_together(file, letter))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(bytes([65 + i]),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    content = path.read_bytes()
    assert len(content) == 20_000 and len(set(content)) == 1 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(tmp_path, exists):
    folder, link = tmp_path / "elsewhere", tmp_path / "a.txt"
    folder.mkdir()
    if exists:
        (folder / "target.txt").write_text("before")
    link.symlink_to(folder / "target.txt")
    write(link)
    assert link.is_symlink() and (folder / "target.txt").read_text() == "after"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_open(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "opened").write_text("")
        write(tmp_path / "new")
        (tmp_path / "old").write_text("")
        (tmp_path / "old").chmod(0o640)
        write(tmp_path / "old")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "opened").stat().st_mode
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640


def test_what_a_killed_writer_leaves_is_removed_after_a_day_and_what_a_living_one_writes_is_not(tmp_path):
    code = (
        "import os, sys; from detrx.atomic import write_atomically\n"
        "write_atomically(sys.argv[1], lambda file: (file.write(b'half'), file.flush(), os.kill(os.getpid(), 9)))"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "a.txt"])
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".a.txt.") and leftover.name.endswith(".tmp")
    (tmp_path / ".mine.tmp").write_text("not of a writer")
    write(tmp_path / "a.txt")
    assert leftover.exists()
    yesterday = time.time() - 25 * 60 * 60
    os.utime(leftover, (yesterday, yesterday))
    with replacing(tmp_path / "b.txt") as living:
        write(tmp_path / "a.txt")
        assert not leftover.exists() and os.path.exists(living)
    assert sorted(os.listdir(tmp_path)) == [".mine.tmp", "a.txt", "b.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
@pytest.mark.parametrize("content", [b"x", b"x" * 1_000_000])
def test_what_is_no_regular_file_is_written_as_it_is(tmp_path, content):
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(UnavailableError, match=re.escape(f"{full} cannot be written: No space left on device")):
        write(full, content)
    write("/dev/null", content)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize(
    "save", [lambda file: file.write(bytes(10_000)), lambda file: torch.save(torch.ones(9999), file)]
)
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, save):
    resource = pytest.importorskip("resource")
    path, before = tmp_path / "a.pth", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_text("before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # stands for a full disk: writing fails half-way
    try:
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))} cannot be written: File too large$"):
            write_atomically(path, save)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"none/a\.txt cannot be written: No such file or directory$"):
        write(tmp_path / "none" / "a.txt")
    with pytest.raises(UserError, match=r"cannot be written: it is a folder$"):
        write(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt cannot be written: Not a directory$"):
        write(tmp_path / "file" / "a.txt")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_are_respected(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    path.chmod(0o444)
    with pytest.raises(UserError, match=r"a\.txt cannot be written: Permission denied$"):
        write(path)
