"""The code in the documentation, for tests that run it."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language in a page of `docs`, in order."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def write_files(page: str, folder: Path) -> list[Path]:
    """Write the Python blocks that begin with a comment of their path below `folder`; returns the files."""
    files = []
    for code in blocks(page, "python"):
        if match := re.match(r"# (\S+\.py)\n", code):
            files.append(folder / match[1])
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            files[-1].write_text(code)
    return files


def commands(page: str) -> list[list[str]]:
    """The commands of the shell blocks of a page, as lists of words; comments left out."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
