"""Machine code of GPU kernels, as `nvdisasm -c` prints it: what is in it, and its loops."""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import networkx

FUNCTION = re.compile(r"^\s*\.section\s+\.text\.([^,\s]+)")
LABEL = re.compile(r"^(\.L_x_\d+|\$[^\s:]+):")
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?PT?\d*)\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?);")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
# What does not go on with the instruction after it, if it is not predicated.
ENDS = ("BRA", "BRX", "JMP", "EXIT", "RET", "BREAK")
JUMPS = ("BRA", "BRX", "JMP", "WARPSYNC")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name with modifiers, such as "LDG.E.128", the labels it may jump to, and its predicate."""

    name: str
    targets: tuple[str, ...] = ()
    predicate: str = ""
    operands: str = ""

    @property
    def operation(self) -> str:
        return self.name.split(".", 1)[0]

    @property
    def goes_on(self) -> bool:
        if self.operation not in ENDS or self.name.startswith("BRA.DIV"):
            return True
        # `BRA !P0, target` is conditional, too: `BRA target` has nothing before the target.
        return bool(self.predicate) or (self.operation == "BRA" and "," in self.operands)


@dataclass
class Function:
    """A kernel with the functions that the compiler put behind it, such as divisions; `labels` by their instruction."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def counts(self, instructions: Collection[int] | None = None) -> Counter[str]:
        """How often each instruction (by name with modifiers) is there, in all or in those at `instructions`."""
        chosen = self.instructions if instructions is None else [self.instructions[i] for i in instructions]
        return Counter(each.name for each in chosen)


def parse(text: str) -> dict[str, Function]:
    """Functions of a disassembly, by mangled name."""
    functions: dict[str, Function] = {}
    function = None
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            function = functions.setdefault(match[1], Function(match[1]))
        elif line.split(maxsplit=1)[:1] == [".section"]:
            function = None
        elif function is None:
            continue
        elif match := LABEL.match(line):
            function.labels[match[1]] = len(function.instructions)
        elif match := INSTRUCTION.match(line):
            predicate, name, operands = match[1] or "", match[2], match[3]
            targets = tuple(TARGET.findall(operands)) if name.split(".")[0] in JUMPS else ()
            function.instructions.append(Instruction(name, targets, predicate, operands))
    return functions


def blocks(function: Function) -> networkx.DiGraph:
    """Basic blocks, as the ranges of their instructions, and how they follow each other; only what a kernel's entry
    reaches. What divergent warps fall back to (BRA.DIV) is left out: it is never run by whole warps."""
    count = len(function.instructions)
    starts = {0, *function.labels.values()}
    for i, instruction in enumerate(function.instructions):
        if instruction.operation in (*JUMPS, *ENDS):
            starts.add(i + 1)
    begins = sorted(start for start in starts if start < count)
    ranges = {begin: range(begin, end) for begin, end in zip(begins, [*begins[1:], count], strict=True)}
    graph = networkx.DiGraph()
    for block in ranges.values():
        last = function.instructions[block[-1]]
        graph.add_node(block)
        targets = [] if last.name.startswith("BRA.DIV") else list(last.targets)
        following = [function.labels[target] for target in targets if target in function.labels]
        following += [block.stop] if last.goes_on and block.stop < count else []
        graph.add_edges_from((block, ranges[start]) for start in following if start in ranges)
    if count == 0:
        return graph
    return graph.subgraph(networkx.descendants(graph, ranges[0]) | {ranges[0]}).copy()


def loops(function: Function) -> list[set[int]]:
    """Natural loops, as sets of the indices of their instructions; loops with the same head are one."""
    graph = blocks(function)
    if not function.instructions:
        return []
    entry = next(block for block in graph if block.start == 0)
    parents = networkx.immediate_dominators(graph, entry)

    def dominators(block: range) -> Iterator[range]:
        while True:
            yield block
            parent = parents.get(block)
            if parent is None or parent == block:
                return
            block = parent

    bodies: dict[range, set[range]] = {}
    for tail, head in graph.edges:
        if head in dominators(tail):
            bodies.setdefault(head, {head}).update(_reaching(graph, tail, head))
    return [{i for block in body for i in block} for body in bodies.values()]


def _reaching(graph: networkx.DiGraph, tail: range, head: range) -> set[range]:
    """Blocks from which `tail` is reached without passing `head`, `tail` among them."""
    found, todo = {head}, [tail]
    while todo:
        block = todo.pop()
        if block not in found:
            found.add(block)
            todo.extend(graph.predecessors(block))
    return found


def innermost_loops(function: Function) -> list[set[int]]:
    """Loops that hold no other loop."""
    found = loops(function)
    return [loop for loop in found if not any(other < loop for other in found)]
