"""``reorder``: another order of the weights in a canonical model's data file, once the engine's is known."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from refit_agent.authoring.canonical.requirements import require_onnx
from refit_agent.authoring.errors import ModelUnsupported, OutputUnwritable
from refit_agent.weights import OnnxWeights, WeightRef

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto


def reorder(path: str | os.PathLike[str], order: Sequence[str]) -> tuple[str, ...]:
    """Rewrite the data file of a canonical model so that the weights named in ``order`` come first, in that order.

    The others follow in their present order. The graph keeps everything but the offsets. Gives the names in
    ``order`` that are no weights in the data file.

    Raises:
        AuthoringMissing: the package onnx is not installed.
        OnnxError: the model is damaged or hostile, or its data file is missing.
        ModelUnsupported: its weights do not lie in one data file beside it.
        OutputUnwritable: the disk is full, or the folder cannot be written.
    """
    require_onnx()
    import onnx

    from refit_agent.authoring.canonical.layout import place_in, places, unknown_names
    from refit_agent.authoring.canonical.publish import publish, workshop
    from refit_agent.authoring.canonical.write import write_data, write_graph

    target = os.fspath(path)
    with OnnxWeights(target) as weights:
        graph = onnx.load(target, load_external_data=False)
        external = _external(graph.graph, target)
        refs, location = _data_file(weights, external)
        present = sorted(refs.values(), key=lambda ref: ref.offset)
        sizes = {ref.name: ref.nbytes for ref in present}
        wanted = places(sizes, order)
        for tensor in external:
            place_in(tensor, location, wanted[tensor.name])
        name = os.path.basename(target)
        try:
            with workshop(target) as folder:
                with open(present[0].file, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    with mapped, memoryview(mapped) as view:

                        def raw(wanted_name: str) -> memoryview:
                            ref = refs[wanted_name]
                            return view[ref.offset : ref.offset + ref.nbytes]

                        write_data(os.path.join(folder, location), wanted, raw)
                write_graph(os.path.join(folder, name), graph, target)
                weights.close()  # Windows does not replace a file that is mapped
                publish(folder, name, location, target)
        except OSError as error:
            raise OutputUnwritable(path=target, detail=error.strerror or str(error)) from error
    return unknown_names(sizes, order)


def _external(graph: GraphProto, path: str) -> list[Any]:
    """The initializers with external data.

    Raises:
        ModelUnsupported: other tensors have external data too; they would be lost, or read from where others lie.
    """
    from onnx import TensorProto

    from refit_agent.authoring.canonical.scopes import all_tensors

    initializers = list(graph.initializer)
    external = [tensor for tensor in all_tensors(graph) if tensor.data_location == TensorProto.EXTERNAL]
    found = [tensor for tensor in initializers if tensor.data_location == TensorProto.EXTERNAL]
    if len(found) != len(external):
        raise ModelUnsupported(path=path, detail="tensors in its nodes have external data: it is not canonical")
    return found


def _data_file(weights: OnnxWeights, external: Sequence[TensorProto]) -> tuple[dict[str, WeightRef], str]:
    """The weights in the data file by name, and the file's name."""
    _ = weights.model  # finds external data wherever it is
    refs = {tensor.name: weights[tensor.name] for tensor in external}
    locations = {str(ref.payload.external) for ref in refs.values()}
    if len(locations) != 1 or len(weights.external_files()) != 1:
        raise ModelUnsupported(path=str(weights.path), detail="its weights do not lie in one data file")
    location = locations.pop()
    if os.path.basename(location) != location or any(ref.nbytes == 0 for ref in refs.values()):
        raise ModelUnsupported(path=str(weights.path), detail="its data file was not written by canonicalize")
    return refs, location
