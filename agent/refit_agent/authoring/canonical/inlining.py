"""Step 1: model-local functions are put in at their calls, so that every call has constants of its own.

The work is done by ``onnx.inliner``; here is what it leaves to its caller: defaults of a function's
attributes, functions for another version of the operators, and files whose few functions unfold to
more nodes than any memory holds.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, inliner

from refit_agent.authoring.canonical.draft import Draft
from refit_agent.authoring.canonical.scopes import all_nodes, child_graphs
from refit_agent.authoring.errors import ModelUnsupported

#: More nodes than this come from no real model; a file of a few kilobytes can ask for 2**24.
MAX_NODES = 1_000_000
_MAX_DEPTH = 100

_Key = tuple[str, str, str]


def inline_functions(draft: Draft) -> None:
    """Replace every call of a local function by its body; the model has no functions afterwards.

    Raises:
        ModelUnsupported: functions call one another in a circle or unfold to too many nodes, or one
            is written for other versions of its operators than the model.
    """
    model = draft.model
    if not model.functions:
        return
    functions = {_key_of(f): f for f in model.functions}
    sizes: dict[_Key, int] = {}
    total = _size(model.graph.node, functions, sizes, draft.path, 0)
    if total > MAX_NODES:
        raise ModelUnsupported(path=draft.path, detail=f"its functions unfold to more than {MAX_NODES} nodes")
    calls = sum(_key(node) in functions for node in all_nodes(model.graph))
    _fill_defaults(all_nodes(model.graph), functions)
    for function in model.functions:
        _fill_defaults(_with_nested(function.node), functions)
        _relabel(function, model)
    inlined = _inline(model, draft.path)
    model.CopyFrom(inlined)
    draft.count("inlined_calls", calls)


def _inline(model: ModelProto, path: str) -> ModelProto:
    try:
        done = inliner.inline_local_functions(model)
        if done.functions:
            done = inliner.inline_local_functions(done, True)
    except Exception as error:  # what the C++ library raises is not one family
        text = " ".join(str(error).split())
        raise ModelUnsupported(path=path, detail=f"its functions cannot be inlined: {text}") from error
    if done.functions:
        left = ", ".join(sorted(f"{f.domain}.{f.name}" for f in done.functions))
        raise ModelUnsupported(path=path, detail=f"the functions {left} need other operator versions than the model")
    return done


def _key(node: NodeProto) -> _Key:
    return node.domain, node.op_type, getattr(node, "overload", "")


def _key_of(function: FunctionProto) -> _Key:
    return function.domain, function.name, getattr(function, "overload", "")


def _with_nested(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    for node in nodes:
        yield node
        for graph in child_graphs(node):
            yield from all_nodes(graph)


def _size(
    nodes: Iterable[NodeProto], functions: dict[_Key, FunctionProto], sizes: dict[_Key, int], path: str, depth: int
) -> int:
    """The nodes there will be once all calls among ``nodes`` are replaced."""
    if depth > _MAX_DEPTH:
        detail = f"its functions call one another in a circle, or more than {_MAX_DEPTH} deep"
        raise ModelUnsupported(path=path, detail=detail)
    total = 0
    for node in _with_nested(nodes):
        key = _key(node)
        if key in functions:
            if key not in sizes:
                sizes[key] = _size(functions[key].node, functions, sizes, path, depth + 1)
            total += sizes[key]
        else:
            total += 1
    return total


def _fill_defaults(nodes: Iterable[NodeProto], functions: dict[_Key, FunctionProto]) -> None:
    """Write the defaults of a function's attributes into its calls: the inliner drops what the call leaves out."""
    for node in nodes:
        function = functions.get(_key(node))
        if function is not None:
            given = {a.name for a in node.attribute}
            node.attribute.extend(a for a in function.attribute_proto if a.name not in given)


def _relabel(function: FunctionProto, model: ModelProto) -> None:
    """Give a function the model's operator versions where all its operators are the same in both.

    The inliner leaves a function alone that asks for another version, whatever it uses of it.
    """
    versions = {_domain(o.domain): o.version for o in model.opset_import}
    for wanted in function.opset_import:
        there = versions.get(_domain(wanted.domain))
        if there is None:
            model.opset_import.add(domain=wanted.domain, version=wanted.version)
            versions[_domain(wanted.domain)] = wanted.version
        elif there != wanted.version and all(
            _same(node.op_type, wanted.domain, wanted.version, there)
            for node in _with_nested(function.node)
            if _domain(node.domain) == _domain(wanted.domain)
        ):
            wanted.version = there


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _same(op_type: str, domain: str, one: int, other: int) -> bool:
    schemas = []
    for version in (one, other):
        try:
            schemas.append(onnx.defs.get_schema(op_type, version, _domain(domain)).since_version)
        except onnx.defs.SchemaError:
            return False
    return bool(schemas[0] == schemas[1])
