"""Trace a detector to a torch.export program, and remove everything that inference does not need."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind
from torch.overrides import TorchFunctionMode

from detrx.errors import InvalidInputError, first_line

from .decompositions import decompositions
from .graph import DetectionGraph

_aten = torch.ops.aten


@torch.no_grad()
def export_program(
    graph: DetectionGraph, images: Tensor, dynamic_batch: bool = False, keep_operators: bool = False
) -> ExportedProgram:
    """The program of a detector, for images of one size.

    It contains only the parameters and buffers that it reads, not those of methods, nor the class heads of all but the
    last decoder layer.

    Args:
        graph: the detector.
        images: example input (B, 3, H, W), which defines dtype and size of the program's input.
        dynamic_batch: accept any batch size instead of B.
        keep_operators: keep the operators of detrx. The program then runs on the compiled kernels and needs
            `import detrx`.

    Raises:
        ValueError: the detector cannot be traced, because a part of it requires a fixed batch size or has
            data-dependent control flow.
    """
    shapes: list[tuple[int, int]] = []
    hook = graph.detector.tokenizer.register_forward_hook(lambda _, __, tokens: shapes.extend(tokens.shapes))
    graph(images)
    hook.remove()
    dynamic = None
    if dynamic_batch:
        dynamic = ({0: torch.export.Dim("batch")},)
        images = images[:1].repeat(2, 1, 1, 1)  # torch.export specialises on a batch size of 1
    with _Replaced({} if keep_operators else decompositions(shapes)):
        try:
            program = torch.export.export(graph, (images,), dynamic_shapes=dynamic, strict=False)
        except torch._dynamo.exc.UserError as error:
            reason = first_line(error)
            raise InvalidInputError(f"the detector cannot be traced for export: {reason}") from error
    return prune(program)


class _Replaced(TorchFunctionMode):
    """A context in which the given functions replace operators."""

    def __init__(self, functions: dict[Any, Callable[..., Any]]):
        super().__init__()
        self.functions = functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.functions.get(func, func)(*args, **(kwargs or {}))


def prune(program: ExportedProgram) -> ExportedProgram:
    """Remove the computations and parameters that the program's outputs do not depend on.

    If one layer is selected from stacked layers, use it directly, so that the others can be removed.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is _aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is _aten.select.int and node.args[0].target is _aten.stack.default:
            layers, *stacked = node.args[0].args
            _, dim, index = node.args
            if dim == (stacked[0] if stacked else 0):
                node.replace_all_uses_with(layers[index])
    graph.eliminate_dead_code()
    specs, state, constants = [], {}, {}
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(places, program.graph_signature.input_specs, strict=True):
        if spec.kind is not InputKind.USER_INPUT and not node.users:
            graph.erase_node(node)
            continue
        specs.append(spec)
        if spec.target in program.state_dict:
            state[spec.target] = program.state_dict[spec.target]
        elif spec.target in program.constants:
            constants[spec.target] = program.constants[spec.target]
    signature = ExportGraphSignature(specs, program.graph_signature.output_specs)
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict=state,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )
