"""The note in a stripped model's metadata_props that says what it was made from, and by which rule."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Annotated

import msgspec

from refit_agent.authoring.errors import NotRestorable
from refit_agent.authoring.stripping.input_files import InputFiles
from refit_agent.weights.wire import BYTES, Wire
from refit_agent.weights.wire_writer import blob, text

#: The key in ``ModelProto.metadata_props``.
KEY = "refit-agent.stripped"
VERSION = 1
_METADATA_PROPS = 14
_MOST_BYTES = 16 << 20

_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Bytes = Annotated[int, msgspec.Meta(ge=0)]


class OriginalFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the original model, without its name."""

    size: _Bytes
    sha256: _Sha256


class Marker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attributes:
    version: of the marker's form.
    model: the original ONNX file.
    external: the files of its external data, in the order in which its tensors name them.
    keep_below, integers: the `Rule`.
    body_sha256: of the stripped file without this marker: whether somebody has changed it.
    """

    version: int
    model: OriginalFile
    external: tuple[OriginalFile, ...]
    keep_below: _Bytes
    integers: bool
    body_sha256: _Sha256


def encode_marker(marker: Marker) -> bytes:
    """The field to append to the ModelProto."""
    return blob(_METADATA_PROPS, text(1, KEY) + text(2, msgspec.json.encode(marker).decode()))


def marker_ranges(wire: Wire) -> list[tuple[int, int]]:
    """Where the markers of a file stand, with their tags; a sound stripped model has one."""
    found = []
    for number, kind, value, end, at in wire.fields(0, wire.size):
        if number == _METADATA_PROPS and kind == BYTES and _entry(wire, value, end)[0] == KEY:
            found.append((at, end))
    return found


def read_marker(wire: Wire, model: str) -> tuple[Marker, tuple[int, int]]:
    """The marker of a stripped file, and where it stands.

    Raises:
        NotRestorable: there is none, there are several, or it cannot be read; ``model`` is for the error.
    """
    places = marker_ranges(wire)
    if not places:
        detail = "it has no mark of strip-onnx in its metadata: it is no stripped model, or a tool has dropped the mark"
        raise NotRestorable(path=wire.path, model=model, detail=detail)
    if len(places) > 1:
        raise NotRestorable(path=wire.path, model=model, detail="it has several marks of strip-onnx in its metadata")
    at, end = places[0]
    _, _, start, _, _ = next(wire.fields(at, end))
    data = _entry(wire, start, end)[1]
    try:
        version = msgspec.json.decode(data, type=dict[str, object]).get("version")
        if version != VERSION:
            detail = f"its mark has the version {version!r}, and this refit-agent knows {VERSION}"
            raise NotRestorable(path=wire.path, model=model, detail=detail)
        return msgspec.json.decode(data, type=Marker), (at, end)
    except (msgspec.MsgspecError, RecursionError) as error:
        detail = f"the mark of strip-onnx in its metadata is damaged: {error}"
        raise NotRestorable(path=wire.path, model=model, detail=detail) from error


def body_sha256(
    inputs: InputFiles, path: str, marker: tuple[int, int], on_bytes: Callable[[int], None] = lambda _: None
) -> str:
    """SHA-256 of a stripped file without its marker. Raises ModelUnsupported."""
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    for start, stop in ((0, marker[0]), (marker[1], inputs.size(path))):
        for chunk in inputs.chunks(path, start, stop, buffer):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def _entry(wire: Wire, start: int, stop: int) -> tuple[str, bytes]:
    """Key and value of a StringStringEntryProto; the value only if it is a marker's."""
    key, place = "", (stop, stop)
    for number, kind, value, end, at in wire.fields(start, stop):
        if number in (1, 2):
            wire.expect(number, kind, BYTES, at)
            if number == 1:
                key = wire.text(value, end)
            else:
                place = (value, end)
    if key != KEY:
        return key, b""
    if place[1] - place[0] > _MOST_BYTES:
        wire.fail(place[0], "the mark of strip-onnx is too large")
    return key, bytes(wire.data[place[0] : place[1]])
