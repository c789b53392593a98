"""ONNX models of any size, made here: with noise as weights, or with holes where nothing reads the values.

A hole takes no room on the disk and is read at the speed of the page cache, as a file that was read before is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from refit_agent.weights import wire_writer as pb

_CHUNK = 1 << 24
_ALIGNMENT = 64

#: Writes that many bytes of one weight.
Fill = Callable[[BinaryIO, int], None]


class Made(NamedTuple):
    """A model, and the bytes of its weights."""

    path: Path
    nbytes: int


def noise(seed: int) -> Fill:
    """Random bytes."""
    rng = np.random.default_rng(seed)

    def fill(file: BinaryIO, count: int) -> None:
        for chunk in _chunks(rng, count):
            file.write(chunk)

    return fill


def holes(file: BinaryIO, count: int) -> None:
    """Zeros that are nowhere."""
    file.truncate(file.seek(count, 1))


def _chunks(rng: np.random.Generator, count: int) -> Iterator[bytes]:
    while count:
        size = min(count, _CHUNK)
        yield rng.bytes(size)
        count -= size


def make_external(folder: Path, nbytes: int, tensors: int = 400, fill: Fill | None = None) -> Made:
    """A model of float16 weights in a file of external data."""
    fill = fill or noise(1)
    each = nbytes // tensors // _ALIGNMENT * _ALIGNMENT
    folder.mkdir(parents=True)
    with open(folder / "weights.bin", "wb") as file:
        fill(file, each * tensors)
    tensors_of_graph = [
        pb.external_tensor(f"layer{n}.weight", "float16", (each // 2,), "weights.bin", n * each, each)
        for n in range(tensors)
    ]
    graph = pb.text(2, "external") + b"".join(pb.blob(5, tensor) for tensor in tensors_of_graph)
    path = folder / "external.onnx"
    path.write_bytes(pb.integer(1, 8) + pb.blob(7, graph))
    return Made(path, each * tensors)


def make_inside(folder: Path, nbytes: int, tensors: int = 100, fill: Fill | None = None) -> Made:
    """A model of float32 weights inside, below the 2 GiB at which protobuf ends."""
    fill = fill or noise(2)
    each = nbytes // tensors // 4 * 4
    heads = [
        pb.tensor_head(f"w{n}", "float32", (each // 4,)) + pb.varint(9 << 3 | 2) + pb.varint(each)
        for n in range(tensors)
    ]
    leads = [pb.varint(5 << 3 | 2) + pb.varint(len(head) + each) + head for head in heads]
    folder.mkdir(parents=True)
    path = folder / "inside.onnx"
    with open(path, "wb") as file:
        size = sum(len(lead) + each for lead in leads)
        file.write(pb.integer(1, 8) + pb.varint(7 << 3 | 2) + pb.varint(size))
        for lead in leads:
            file.write(lead)
            fill(file, each)
    return Made(path, each * tensors)


def make_runnable(folder: Path, nbytes: int, layers: int = 16) -> Made:
    """A chain of matrix products that ONNX Runtime runs: input "x", output "y", float32 weights in external data."""
    width = max(int(math.sqrt(nbytes / 4 / layers)) // 32, 1) * 32
    each = width * width * 4
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    with open(folder / "weights.data", "wb") as file:
        for _ in range(layers):
            (rng.standard_normal((width, width), np.float32) / np.float32(math.sqrt(width))).tofile(file)
    names = ["x", *(f"h{n}" for n in range(1, layers)), "y"]
    graph = b"".join(
        pb.blob(1, pb.node("MatMul", [names[n], f"layer{n}.weight"], [names[n + 1]])) for n in range(layers)
    )
    graph += pb.text(2, "chain")
    graph += b"".join(
        pb.blob(5, pb.external_tensor(f"layer{n}.weight", "float32", (width, width), "weights.data", n * each, each))
        for n in range(layers)
    )
    graph += pb.blob(11, pb.value_info("x", "float32", (1, width)))
    graph += pb.blob(12, pb.value_info("y", "float32", (1, width)))
    path = folder / "chain.onnx"
    path.write_bytes(pb.integer(1, 8) + pb.blob(7, graph) + pb.blob(8, pb.text(1, "") + pb.integer(2, 17)))
    return Made(path, each * layers)
