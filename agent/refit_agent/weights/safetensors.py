"""SafetensorsWeights: the tensors of safetensors files as a mapping, with the interface of OnnxWeights.

    0..7      N, the length of the header, little-endian
    8..8+N    the header: one JSON object, {NAME: {"dtype": "F16", "shape": [..], "data_offsets": [BEGIN, END]}, ...};
              the name ``__metadata__`` is no tensor but an object of strings
    8+N..     the payloads, little-endian, row-major; offsets count from here

Source: the section "Format" of the README of the safetensors library, and what the library itself (0.8) accepts.
Stricter than the library where two readers could take one file for two different sets of weights: a name or field that
stands there twice, a field that nobody knows, and a header that does not begin with ``{``. Nor does it take metadata
that are null, shapes of more dimensions than NumPy has, or those that no address space holds beside a 0.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec

from refit_agent.errors import BundleFileMissing, SafetensorsMalformed
from refit_agent.errors.bundle import file_error
from refit_agent.weights.dtypes import TYPES, DataType
from refit_agent.weights.external import open_regular, release
from refit_agent.weights.records import Payload, WeightRef
from refit_agent.weights.scan import MAX_RANK

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

#: The library's own limit.
MAX_HEADER_BYTES = 100_000_000
_METADATA = "__metadata__"
_LENGTH_BYTES = 8

_BY_NAME = {dtype.name: dtype for dtype in TYPES.values()}
_DTYPES = {
    code: _BY_NAME[name]
    for code, name in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "U16": "uint16",
        "I16": "int16",
        "F16": "float16",
        "BF16": "bfloat16",
        "U32": "uint32",
        "I32": "int32",
        "F32": "float32",
        "U64": "uint64",
        "I64": "int64",
        "F64": "float64",
        "C64": "complex64",
        "F8_E4M3": "float8e4m3fn",
        "F8_E4M3FNUZ": "float8e4m3fnuz",
        "F8_E5M2": "float8e5m2",
        "F8_E5M2FNUZ": "float8e5m2fnuz",
        "F8_E8M0": "float8e8m0",
        "F6_E2M3": "float6e2m3",
        "F6_E3M2": "float6e3m2",
        "F4": "float4e2m1",
    }.items()
}

_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the header says of one tensor."""

    dtype: str
    shape: Annotated[list[_Size], msgspec.Meta(max_length=MAX_RANK)]
    data_offsets: tuple[_Size, _Size]


_header = msgspec.json.Decoder(dict[str, msgspec.Raw])
_tensor = msgspec.json.Decoder(_Tensor)
_metadata = msgspec.json.Decoder(dict[str, str])


class SafetensorsWeights(Mapping[str, WeightRef]):
    """Every tensor of one or several safetensors files, by name, in the order of the payloads.

    The files are mapped, never loaded: opening reads the headers alone, whatever the size of the weights. All that
    a header says is checked then, so no access can fail for the file's content. While it is open or an array on it
    is alive, nobody may truncate a file.

    Raises:
        BundleFileMissing, BundleFileUnreadable: a file cannot be opened.
        SafetensorsMalformed: it is not sound, or two files have a tensor of one name.

    Any thread may use one object; ``close()`` must come last. Arrays stay valid after it.
    """

    def __init__(self, *paths: str | os.PathLike[str]) -> None:
        self.paths = tuple(Path(os.fspath(path)) for path in paths)
        self._maps: dict[Path, mmap.mmap] = {}
        self._entries: dict[str, WeightRef] = {}
        self._closed = False
        try:
            for path in self.paths:
                self._add(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SafetensorsWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SafetensorsWeights {self.shown!r}, {len(self)} tensors>"

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> WeightRef:
        return self._entries[name]

    @property
    def shown(self) -> str:
        """The files, for messages."""
        return ", ".join(map(str, self.paths))

    def close(self) -> None:
        """Release the maps that no array uses; references can make no more arrays."""
        self._closed = True
        maps, self._maps = self._maps, {}
        for mapped in maps.values():
            release(mapped)

    def read_array(self, ref: WeightRef) -> npt.NDArray[Any]:
        """The array of one of this object's references, a view into the file; see ``WeightRef.array``."""
        from refit_agent.weights.decode import plain_array

        if self._closed:
            raise ValueError(f"SafetensorsWeights({self.shown!r}) is closed")
        return plain_array(self._maps[ref.file], ref)

    def _add(self, path: Path) -> None:
        """Map one file and take over its tensors."""
        handle, size = _open(path)
        try:
            tensors, start = _read_header(path, handle, size)
            try:
                self._maps[path] = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise file_error(str(path), error) from error
        finally:
            os.close(handle)
        if len(self._maps[path]) < size:
            _fail(path, "it became shorter while it was read")
        for name, (tensor, dtype, count) in tensors.items():
            if name in self._entries:
                _fail(path, f"it has a tensor {name!r}, and so has {self._entries[name].file}")
            begin, end = (start + offset for offset in tensor.data_offsets)
            self._entries[name] = WeightRef(
                name=name,
                key=name,
                scope="",
                kind="tensor",
                file=path,
                offset=begin,
                nbytes=end - begin,
                dtype=dtype.name,
                shape=tuple(tensor.shape),
                count=count,
                is_view=True,
                payload=Payload("plain", begin, end),
                source=self,
            )


_Checked = tuple[_Tensor, DataType, int]


def _open(path: Path) -> tuple[int, int]:
    """A descriptor of the file, which the caller closes, and its size."""
    try:
        handle, info = open_regular(path)
    except (OSError, ValueError) as error:
        raise file_error(str(path), error) from error
    if handle is None:
        raise BundleFileMissing(path=str(path), detail="it is not a regular file")
    return handle, info.st_size


def _read_header(path: Path, handle: int, size: int) -> tuple[dict[str, _Checked], int]:
    """The tensors in the order of their payloads, each with its type and count, and where the payloads begin."""
    if size < _LENGTH_BYTES:
        _fail(path, f"it has {size} bytes, and the length of its header alone takes {_LENGTH_BYTES}")
    length = int.from_bytes(_read(path, handle, _LENGTH_BYTES), "little")
    start = _LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES:
        _fail(path, f"it gives its header {length} bytes, and no more than {MAX_HEADER_BYTES} are allowed")
    if start > size:
        _fail(path, f"it gives its header {length} bytes and has {size} in all")
    header = _read(path, handle, length)
    if not header.startswith(b"{"):
        _fail(path, f"its header begins with {header[:1]!r}, and every one with b'{{'")
    try:
        found = _header.decode(header)
        if _METADATA in found:
            _metadata.decode(found.pop(_METADATA))
        tensors = {name: _check(path, name, _tensor.decode(raw)) for name, raw in found.items()}
        # Last: by now it is known that nothing in it is nested deeply.
        json.loads(header, object_pairs_hook=lambda pairs: _refuse_twice(path, pairs))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        _fail(path, f"its header cannot be read: {error}")
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1][0].data_offsets))
    _require_covered(path, ordered, size - start)
    return ordered, start


def _check(path: Path, name: str, tensor: _Tensor) -> _Checked:
    """The tensor with its type and count, if what the header says of it goes together."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        _fail(path, f"the tensor {name!r} is of the unknown type {tensor.dtype!r}")
    volume = 1
    for dim in tensor.shape:
        volume *= dim or 1  # what no address space holds is refused beside a 0 too
    count = 0 if 0 in tensor.shape else volume
    if volume * dtype.bits >= 1 << 66:
        _fail(path, f"the tensor {name!r} has the shape {tensor.shape}, more than 2**63 bytes")
    if count * dtype.bits % 8:
        _fail(path, f"the tensor {name!r} has {count} elements of {dtype.bits} bits, which are no whole bytes")
    begin, end = tensor.data_offsets
    if end - begin != dtype.byte_count(count):
        given = f"its offsets are {begin} to {end}"
        _fail(
            path,
            f"the tensor {name!r} of {tensor.shape} {tensor.dtype} has {dtype.byte_count(count)} bytes, and {given}",
        )
    return tensor, dtype, count


def _require_covered(path: Path, ordered: Mapping[str, _Checked], size: int) -> None:
    """The payloads must follow one another, without a gap, to the end: no byte is used twice, none is hidden."""
    position = 0
    for name, (tensor, _, _) in ordered.items():
        begin, end = tensor.data_offsets
        if begin != position:
            _fail(path, f"the tensor {name!r} begins at {begin}, and what comes before it ends at {position}")
        position = end
    if position != size:
        _fail(path, f"its tensors take {position} bytes, and {size} follow the header")


def _refuse_twice(path: Path, pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            _fail(path, f"its header has {name!r} twice")
        seen.add(name)


def _read(path: Path, handle: int, count: int) -> bytes:
    """The next ``count`` bytes; a single read may give fewer."""
    parts = []
    while count:
        part = os.read(handle, count)
        if not part:
            _fail(path, "it became shorter while it was read")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _fail(path: Path, detail: str) -> NoReturn:
    raise SafetensorsMalformed(path=str(path), detail=detail)
