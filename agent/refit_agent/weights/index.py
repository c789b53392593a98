"""OnnxWeights: the weights of an ONNX file as a mapping."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from refit_agent.errors import OnnxMalformed, WeightUnsupported
from refit_agent.errors.bundle import file_error
from refit_agent.weights.batch_norms import graph_batch_norms, node_graphs
from refit_agent.weights.external import ExternalFiles, open_regular, release
from refit_agent.weights.parse import GraphReader
from refit_agent.weights.records import BatchNorm, Graph, Node, OnnxModel, WeightRef, set_key
from refit_agent.weights.scan import may_hold_tensor, scan_graph, scan_model
from refit_agent.weights.tensors import TensorReader
from refit_agent.weights.wire import Wire

if TYPE_CHECKING:
    import numpy.typing as npt

# How to make a reference that has not been asked for yet: an initializer by the offset of its
# record, a Constant node by (index, start, stop).
_Lazy = Union[int, "tuple[int, int, int]"]


class OnnxWeights(Mapping[str, WeightRef]):
    """Every tensor that an ONNX file defines, by key; nothing is read until it is asked for.

    Listed are the initializers of the main graph, of nested graphs and of local functions' nested
    graphs, and Constant nodes under the name of their output 0. A top-level name is its own key. A
    nested definition has its plain name as key if no earlier definition has it, otherwise
    ``<scope path>::<name>``. The order is the traversal order: top-level initializers, then the
    nodes in file order, depth first (initializers before nodes; the then branch of an If before the
    else branch, as TensorRT's parser goes), then functions. Training graphs are not looked at.

    The file is mapped, never loaded, so its size does not matter; while it is open or an array on it
    is alive, nobody may truncate it. Opening checks the structure of the main graph and everything
    in nested graphs and functions that hold tensors; a top-level tensor's type, shape and payload are
    checked when its reference is made, the nodes' contents when ``model`` is read.

    Attributes:
        path: where the model was opened.
        opened: what the system said of the very file that is mapped, which may have lost its name since.

    Args:
        path: the model.
        external_root: folder that external data locations are relative to and must stay in; by
            default the model's own.
        elsewhere: external files that lie somewhere else: absolute paths by location, without "." and "..".

    Raises:
        BundleFileMissing, BundleFileUnreadable: the model cannot be opened.
        OnnxMalformed: it is not a sound ONNX file (also from every later access).
        OnnxUnsafePath, OnnxExternalMissing: from access to a tensor with external data.

    Any thread may use one object; ``close()`` must come last. Arrays stay valid after it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        external_root: str | os.PathLike[str] | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        text = os.fspath(path)
        self.path = Path(text)
        self._lock = threading.RLock()
        self._map: mmap.mmap | None
        self._map, self.opened = _map_model(text)
        try:
            root = os.path.dirname(text) or "." if external_root is None else os.fspath(external_root)
            self._external = ExternalFiles(text, root, elsewhere)
            self._wire = Wire(self._map, text)
            self._tensors = TensorReader(self._wire, self.path, self._external, self)
            self._reader = GraphReader(self._wire, self._tensors)
            # The walk touches one page of every tensor; without this the kernel reads 128 KB around
            # each: measured 134 ms in place of 6.5 ms for a 667 MB file that is not in the page cache.
            _advise(self._map, "MADV_RANDOM")
            self._layout = scan_model(self._wire)
            self._entries: dict[str, _Lazy | WeightRef] = {}
            self._later: dict[str, list[str]] = {}
            self._model: OnnxModel | None = None
            self._batch_norms: tuple[BatchNorm, ...] | None = None
            self._index()
            _advise(self._map, "MADV_NORMAL")  # payloads are read in sequence
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OnnxWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OnnxWeights {os.fspath(self.path)!r}, {len(self._entries)} tensors>"

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __getitem__(self, key: str) -> WeightRef:
        entry = self._entries[key]
        if isinstance(entry, WeightRef):
            return entry
        with self._lock:
            entry = self._entries[key]
            if not isinstance(entry, WeightRef):
                self._check_open()
                entry = self._entries[key] = self._make(key, entry)
        return entry

    def definitions(self, name: str) -> tuple[WeightRef, ...]:
        """All definitions with the plain name ``name``, in traversal order; () if there is none."""
        keys = self._later.get(name, [])
        if name in self._entries and name not in keys:
            first = self[name]
            if first.name == name:
                return (first, *(self[key] for key in keys))
        return tuple(self[key] for key in keys)

    @property
    def model(self) -> OnnxModel:
        """The whole graph, read on first use and kept; its references are those of the mapping.

        Raises:
            OnnxMalformed, OnnxUnsafePath, OnnxExternalMissing
            ValueError: closed before the first use.
        """
        with self._lock:
            if self._model is None:
                self._check_open()
                model = self._reader.model(self._layout)
                for name, ref in model.graph.initializers.items():
                    self._adopt(name, ref)
                for node in model.graph.nodes:
                    if node.constant is not None:
                        self._adopt(node.constant.name, node.constant)
                self._model = model
            return self._model

    @property
    def batch_norms(self) -> tuple[BatchNorm, ...]:
        """The BatchNormalization nodes with four constant parameters, in traversal order."""
        with self._lock:
            if self._batch_norms is None:
                self._check_open()
                self._batch_norms = tuple(self._find_batch_norms())
            return self._batch_norms

    def external_files(self) -> tuple[Path, ...]:
        """The external files that the references made so far lie in; after ``model`` was read, all there are."""
        with self._lock:
            return self._external.paths()

    def external_opened(self) -> dict[Path, tuple[int, int, int]]:
        """Device, inode and size of each external file that was found so far."""
        with self._lock:
            return self._external.opened()

    def external_locations(self) -> dict[str, Path]:
        """The same files by the locations that the model names, without "." in them."""
        with self._lock:
            return self._external.locations()

    def close(self) -> None:
        """Release the maps that no array uses; references can make no more arrays."""
        with self._lock:
            mapped, self._map = self._map, None
            if mapped is None:
                return
            if hasattr(self, "_wire"):
                self._wire.data = b""
            release(mapped)
            if hasattr(self, "_external"):
                self._external.close()

    def read_array(self, ref: WeightRef) -> npt.NDArray[Any]:
        """The array of one of this object's references; see ``WeightRef.array``."""
        from refit_agent.weights.decode import fields_array, plain_array

        if ref.kind == "sparse" or ref.dtype == "string":
            what = "it is sparse" if ref.kind == "sparse" else "it holds strings"
            raise WeightUnsupported(name=ref.key or ref.name, path=os.fspath(self.path), detail=what)
        with self._lock:
            self._check_open()
            if ref.payload.form == "fields":
                return fields_array(self._wire, ref)
            location = ref.payload.external
            if location is None or ref.nbytes == 0:
                return plain_array(self._wire.data, ref)
            return plain_array(self._external.find(location, 0).map(), ref)

    def _check_open(self) -> None:
        if self._map is None:
            raise ValueError(f"OnnxWeights({os.fspath(self.path)!r}) is closed")

    def _make(self, key: str, entry: _Lazy) -> WeightRef:
        wire = self._wire
        if isinstance(entry, int):
            _, _, start, stop, _ = next(wire.fields(entry, wire.size))
            ref = self._tensors.tensor(start, stop, "", "initializer")
        else:
            index, start, stop = entry
            constant = self._reader.node(start, stop, "", index, 1).constant
            if constant is None:
                wire.fail(start, f"the Constant {key!r} refers to an attribute outside of a function")
            ref = constant
        set_key(ref, key)
        return ref

    def _adopt(self, name: str, ref: WeightRef) -> None:
        """Take a top-level reference that reading the whole model has made."""
        if ref.scope == "" and not ref.key:
            set_key(ref, name)
            self._entries[name] = ref

    def _index(self) -> None:
        """Fill the mapping: the fast walk, then the nodes and functions that hold tensors."""
        wire = self._wire
        outline = scan_graph(wire, *self._layout.graph)
        entries = self._entries
        entries.update(outline.names)
        for start, stop in outline.sparse:
            ref = self._tensors.sparse(start, stop, "")
            if ref.name in entries or not ref.name:
                wire.fail(start, f"the initializer {ref.name!r} is there twice or has no name")
            entries[ref.name] = ref
            set_key(ref, ref.name)
        later: list[tuple[str, _Lazy | WeightRef]] = []
        top: set[str] = set(entries) if outline.nodes else set()
        for index, start, stop in outline.nodes:
            output = self._reader.constant_output(start, stop)
            if output is not None:
                if output in top:
                    wire.fail(start, f"the tensor {output!r} is there twice in one graph")
                top.add(output)
                later.append((output, (index, start, stop)))
            else:
                later.extend((ref.name, ref) for ref in _of_node(self._reader.node(start, stop, "", index, 1)))
        for start, stop in self._layout.functions:
            if may_hold_tensor(wire, start, stop):
                for node in self._reader.function(start, stop).nodes:
                    later.extend((ref.name, ref) for ref in _of_node(node))
        for name, entry in later:
            key = name
            if isinstance(entry, WeightRef):
                # a top-level Constant further down keeps its plain name too, hence both checks
                if key in entries or key in top:
                    key = f"{entry.scope}::{name}"
                    if key in entries or key in top:
                        key = f"{key}~{entry.offset}"
                    if key in entries or key in top:
                        wire.fail(entry.offset, f"no unique key is left for the tensor {name!r}")
                set_key(entry, key)
            entries[key] = entry
            self._later.setdefault(name, []).append(key)

    def _find_batch_norms(self) -> Iterator[BatchNorm]:
        start, stop = self._layout.graph
        spans = [(at, end) for number, _, at, end, _ in self._wire.fields(start, stop) if number == 1]
        spans += self._layout.functions
        data = self._wire.data
        if not any(data.find(b"BatchNormalization", at, end) >= 0 for at, end in spans):
            return
        model = self.model
        yield from graph_batch_norms(model.graph, frozenset())
        for function in model.functions.values():
            yield from graph_batch_norms(
                Graph(function.name, function.scope, {}, function.nodes, function.inputs, function.outputs), frozenset()
            )


def _map_model(path: str) -> tuple[mmap.mmap, os.stat_result]:
    try:
        handle, info = open_regular(path)
    except OSError as error:
        raise file_error(path, error) from error
    if handle is None:
        raise OnnxMalformed(path=path, offset=0, detail="it is not a regular file")
    try:
        if info.st_size == 0:
            raise OnnxMalformed(path=path, offset=0, detail="it is empty")
        return mmap.mmap(handle, 0, access=mmap.ACCESS_READ), info
    except OSError as error:
        raise file_error(path, error) from error
    finally:
        os.close(handle)


def _advise(mapped: mmap.mmap, advice: str) -> None:
    """Tell the kernel how the map is going to be read, where the system has such advice."""
    value = getattr(mmap, advice, None)
    if value is not None:
        mapped.madvise(value)


def _of_graph(graph: Graph) -> Iterator[WeightRef]:
    yield from graph.initializers.values()
    for node in graph.nodes:
        yield from _of_node(node)


def _of_node(node: Node) -> Iterator[WeightRef]:
    if node.constant is not None:
        yield node.constant
        return
    for graph in node_graphs(node):
        yield from _of_graph(graph)
