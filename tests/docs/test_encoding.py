"""Text is read and written as UTF-8, whatever the locale is; ruff sees only some of the places."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = ("os", "Image", "av", "PathManager", "zipfile", "tarfile")  # what has another `open`


def without_encoding(path: Path) -> list[int]:
    """Lines that open a text file, or read the output of a program as text, without an encoding."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        keywords = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        positional = node.args[0 if owner else 1 :][:1]
        mode = getattr(positional[0], "value", "b") if positional else keywords.get("mode", "r")
        opens = name == "open" and owner not in BINARY and "b" not in str(mode)
        if opens or (owner and name in ("read_text", "write_text")) or keywords.get("text") is True:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("folder", ["detrx", "projects", "benchmarks", "tools", "docs", "configs"])
def test_text_files_have_an_encoding(folder: str):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(path.relative_to(ROOT)): lines for path in files if (lines := without_encoding(path))} == {}
