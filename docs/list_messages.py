#!/usr/bin/env python
"""Prints every message that detrx's users can meet, with its place, for reading them in one go: errors, the problems of
datasets, warnings, and what commands refuse. Expressions in a message stand in braces, as they do in the source.

python docs/list_messages.py                  all
python docs/list_messages.py detrx/checkpoint   those of a folder or file
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "detrx", "projects", "tools")
# Callables whose arguments are shown to users -> the kind of the message, and the position of the text.
CALLS = {
    "error": ("refused argument", 0),  # argparse's
    "exit": ("exit", 0),
    "warning": ("warning", 0),
    "warn": ("warning", 0),
    "add": ("problem", 1),  # Findings.add(Problem.KIND, example)
}


class Message(NamedTuple):
    """A message as the source has it. `kind` is the exception's name, or a value of `CALLS`."""

    path: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind}: {self.text}"


def messages(path: Path) -> Iterator[Message]:
    """The messages of one source file, in the order of their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    for scope, node in sorted(_with_scopes(tree, _Texts(tree)), key=lambda found: getattr(found[1], "lineno", 0)):
        kind, text, values = "", None, []
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            kind, text = _called(node.exc), node.exc.args[0]
        elif isinstance(node, ast.Call) and _called(node) in CALLS:
            kind, position = CALLS[_called(node)]
            if len(node.args) > position and (kind != "problem" or _is_problem(node.args[0])):
                text, values = node.args[position], node.args[position + 1 :]
        elif isinstance(node, ast.Assign) and _is_severity_and_text(node.value):
            severity, text = node.value.elts
            kind = f"kind of problem ({ast.unparse(severity).lower()})"
        if text is None:
            continue
        message = _filled(scope.text(text, node.lineno), values)
        if re.search("[a-z]", re.sub("{.*}", "", message)):  # otherwise it is another message, passed on
            yield Message(name, node.lineno, kind, message)


def all_messages(within: Path = ROOT) -> list[Message]:
    """The messages of all sources, or of those in a folder or file."""
    files = [file for source in SOURCES for file in _python_files(ROOT / source)]
    return [message for file in files if file.is_relative_to(within) for message in messages(file)]


class _Texts:
    """Expressions of one function as the text that they make, as far as the function's own assignments tell."""

    def __init__(self, scope: ast.AST) -> None:
        self._assigned: dict[str, dict[int, ast.expr]] = {}
        self._used: dict[str, int] = {}
        for node in ast.walk(scope):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, (ast.Assign, ast.NamedExpr)) and isinstance(targets[0], ast.Name):
                self._assigned.setdefault(targets[0].id, {})[node.lineno] = node.value

    def text(self, node: ast.expr, line: int) -> str:
        """The text of an expression that is used in this line. Alternatives stand side by side, ``<one|other>``."""
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(self.text(part, line) for part in node.values)
        if isinstance(node, ast.FormattedValue):
            return self.text(node.value, line)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and _is_text(node):
            return self.text(node.left, line) + self.text(node.right, line)
        if isinstance(node, ast.IfExp) and _is_text(node):
            return f"<{self.text(node.body, line)}|{self.text(node.orelse, line)}>"
        if isinstance(node, ast.Name):
            return self._of_name(node.id, line)
        return "{" + ast.unparse(node) + "}"

    def _of_name(self, name: str, line: int) -> str:
        """What was assigned to a name since it was used in an earlier message, or the last of all before."""
        before = {at: value for at, value in self._assigned.get(name, {}).items() if at < line}
        since = [at for at in before if at >= self._used.get(name, 0)] or [*before][-1:]
        if not since or not all(_is_text(before[at]) for at in since):
            return "{" + name + "}"
        self._used[name] = line
        texts = [self.text(before[at], at) for at in since]
        return texts[0] if len(texts) == 1 else f"<{'|'.join(texts)}>"


def _is_severity_and_text(node: ast.expr) -> bool:
    """Whether this is how `Problem` defines its members."""
    if not isinstance(node, ast.Tuple) or len(node.elts) != 2 or not _is_text(node.elts[1]):
        return False
    return isinstance(node.elts[0], ast.Name) and node.elts[0].id in ("ERROR", "WARNING")


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _filled(text: str, values: list[ast.expr]) -> str:
    """A format of the module logging with the expressions that fill it."""
    filling = iter(values)
    return re.sub(r"%[.0-9]*[sdrfg]", lambda _: "{" + ast.unparse(next(filling)) + "}", text) if values else text


def _with_scopes(node: ast.AST, scope: _Texts) -> Iterator[tuple[_Texts, ast.AST]]:
    """Every node, with the texts of the function that it is in."""
    for child in ast.iter_child_nodes(node):
        yield scope, child
        own = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield from _with_scopes(child, _Texts(child) if own else scope)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_problem(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Problem"


def _python_files(source: Path) -> list[Path]:
    return [source] if source.is_file() else sorted(source.rglob("*.py"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("within", nargs="?", type=Path, default=ROOT, help="folder or file (default: all)")
    args = parser.parse_args(argv)
    found = all_messages(args.within.resolve())
    print(*found, sep="\n")
    print(f"{len(found)} messages")


if __name__ == "__main__":
    main()
