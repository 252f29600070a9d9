#!/usr/bin/env python
"""Draws docs/layers.svg, the rooms of the library and their imports, from the imports themselves.

    python docs/draw_layers.py           draw it
    python docs/draw_layers.py --check   only say whether it is out of date

A room is a subpackage or module of `detrx`, or the folder of projects. An arrow is an import, also one inside of a
function; imports for type checkers alone do not count. Every room stands above all rooms that it imports; a cycle is an
error.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "layers.svg"
COLOURS = {"projects": "#f3d9b1", "cli": "#d9d9d9"}


def modules(root: Path = ROOT) -> dict[str, Path]:
    """The modules of library and projects by name; no configs."""
    files = [*(root / "detrx").rglob("*.py"), *(root / "projects").rglob("*.py")]
    found = {}
    for file in sorted(files):
        parts = file.relative_to(root).with_suffix("").parts
        if "configs" not in parts:
            found[".".join(("detrx", *parts) if parts[0] == "projects" else parts)] = file
    return found


def room_of(module: str) -> str | None:
    """The room of a module's name; None outside of the library, and for what only leads to others: `detrx` itself and
    `detrx.projects`, which makes the folder of projects importable."""
    parts = module.split(".")
    if parts[0] != "detrx" or len(parts) == 1 or parts[1:] in (["projects"], ["__init__"], ["projects", "__init__"]):
        return None
    return parts[1]


def imports(module: str, file: Path) -> Iterator[str]:
    """Names of the modules that a module imports when it runs."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    package = module.removesuffix(".__init__") if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{name}.{alias.name}" for alias in node.names)


def arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """Room -> the rooms that it imports."""
    result: dict[str, set[str]] = {}
    known = modules(root)
    rooms = {room_of(name) for name in known} - {None}
    for name, file in known.items():
        if room := room_of(name):
            targets = {room_of(target) for target in imports(name, file)}
            result.setdefault(room, set()).update((targets & rooms) - {room})
    return result


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """Room -> its floor: one above the highest of those that it imports.

    Raises:
        ValueError: rooms import each other in a circle, which the message names.
    """
    found: dict[str, int] = {}

    def level(room: str, path: tuple[str, ...]) -> int:
        if room in path:
            raise ValueError(f"rooms import each other: {' -> '.join([*path[path.index(room) :], room])}")
        if room not in found:
            found[room] = 1 + max((level(other, (*path, room)) for other in sorted(graph[room])), default=-1)
        return found[room]

    for room in sorted(graph):
        level(room, ())
    return found


def direct(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The arrows without those that a longer way through other arrows stands for."""

    def below(room: str) -> set[str]:
        return set().union(*({other} | below(other) for other in graph[room]))

    return {
        room: {other for other in others if not any(other in below(between) for between in others - {other})}
        for room, others in graph.items()
    }


def draw(file: Path, root: Path = ROOT) -> None:
    """Write the picture as SVG; the same imports give the same file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    graph = arrows(root)
    floors = levels(graph)
    places = {}
    for floor in range(max(floors.values()) + 1):
        rooms = sorted(room for room, level in floors.items() if level == floor)
        for index, room in enumerate(rooms):
            # Alternate floors are shifted, so that arrows over several floors pass between the boxes.
            places[room] = (2.4 * (index - (len(rooms) - 1) / 2) + (0.35 if floor % 2 else -0.35), 0.9 * floor)
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "layers", "font.family": "sans-serif"}):
        figure, axes = pyplot.subplots(figsize=(8, 0.7 * (max(floors.values()) + 1)))
        for room, others in sorted(direct(graph).items()):
            for other in sorted(others):
                axes.annotate(
                    "",
                    xy=(places[other][0], places[other][1] + 0.24),
                    xytext=(places[room][0], places[room][1] - 0.24),
                    arrowprops={"arrowstyle": "->", "color": "#888888", "linewidth": 0.9},
                )
        for room, (x, y) in sorted(places.items()):
            box = {"boxstyle": "round,pad=0.35", "facecolor": COLOURS.get(room, "#dbe7f5"), "edgecolor": "#555555"}
            axes.text(x, y, room, ha="center", va="center", fontsize=9, color="black", bbox=box)
        width = max(abs(x) for x, _ in places.values()) + 1.3
        axes.set(xlim=(-width, width), ylim=(-0.6, 0.9 * max(floors.values()) + 0.6))
        axes.axis("off")
        figure.savefig(file, bbox_inches="tight", facecolor="white", metadata={"Date": None, "Description": key(graph)})
        pyplot.close(figure)


def key(graph: dict[str, set[str]]) -> str:
    """The arrows as text, which the picture carries."""
    return "; ".join(
        f"{room} imports {', '.join(sorted(others)) or 'nothing'}" for room, others in sorted(graph.items())
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw docs/layers.svg: the rooms of the library and their imports.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if arrows have changed")
    args = parser.parse_args(argv)
    if not args.check:
        draw(PICTURE)
        print(f"picture: {PICTURE}")
    elif not PICTURE.is_file() or key(arrows()) not in PICTURE.read_text(encoding="utf-8"):
        sys.exit("error: docs/layers.svg is out of date: run docs/draw_layers.py")


if __name__ == "__main__":
    main()
