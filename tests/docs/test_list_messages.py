import subprocess
import sys
import textwrap

from tests.docs.scripts import script

list_messages = script("list_messages")

SOURCE = """
    def load(path, strict):
        if not path:
            raise ValueError("no path")
        if strict:
            why = f"{path} is damaged"
        else:
            why = "nothing" if path else "something"
        raise InvalidInputError(f"file {path!r}: " + why)

    def warn(logger, path):
        logger.warning("%s has %d lines", path, path.lines)
        raise StopIteration(path)

    class Problem(enum.Enum):
        BOX = ERROR, "boxes that are none"
        NAME = "x"
"""


def test_messages_of_a_file(tmp_path):
    file = tmp_path / "source.py"
    file.write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    assert [(message.kind, message.text) for message in list_messages.messages(file)] == [
        ("ValueError", "no path"),
        ("InvalidInputError", "file {path}: <{path} is damaged|<nothing|something>>"),
        ("warning", "{path} has {path.lines} lines"),
        ("kind of problem (error)", "boxes that are none"),
    ]


def test_all_messages_are_found_by_the_script():
    command = [sys.executable, list_messages.__file__, "detrx/checkpoint"]
    printed = subprocess.run(command, cwd=list_messages.ROOT, capture_output=True, text=True, check=True).stdout
    *lines, count = printed.splitlines()
    assert count == f"{len(lines)} messages" and len(lines) > 30
    assert all(line.startswith("detrx/checkpoint/") for line in lines)


def test_messages_are_one_line():
    found = list_messages.all_messages()
    assert [str(message) for message in found if "\n" in message.text and message.path != "setup.py"] == []
