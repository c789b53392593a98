"""The header of a safetensors file, against the library itself: what we take it takes, and reads the same way.

What it takes and we do not must be one of the things that the reader's words say it refuses beyond the library.
"""

from __future__ import annotations

import random
import struct

import safetensors

from refit_agent.errors import SafetensorsMalformed
from refit_agent.weights.safetensors import _DTYPES, SafetensorsWeights

from .. import mutators, sandbox

_PATH = sandbox.folder("safetensors") / "w.safetensors"
_CODES = {dtype.name: code for code, dtype in _DTYPES.items()}
#: How it tells what it refuses beyond the library, see the reader's own words.
_STRICTER = (
    "twice",
    "unknown field",
    "begins with",
    "got `null`",
    "length <= 32",
    "more than 2**63",
    "<= 9223372036854775807",
)


def check(data: bytes) -> bool:
    """Read ``data`` as a file of weights."""
    _PATH.write_bytes(data)
    try:
        with SafetensorsWeights(_PATH) as weights:
            ours = {k: (_CODES[r.dtype], [*r.shape], r.array().tobytes(), r.nbytes) for k, r in weights.items()}
    except SafetensorsMalformed as error:
        said = str(error)
        assert _library(data) is None or any(word in said for word in _STRICTER), f"the library takes it; we: {said}"
        return False
    theirs = _library(data)
    assert theirs is not None, "the library refuses it"
    assert {name: entry[:3] for name, entry in ours.items()} == theirs
    assert sum(entry[3] for entry in ours.values()) <= len(data)
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another header, with its length; now and then the bytes behind it are cut or more."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data):
        return data
    header, payload = mutators.json_document(data[8 : 8 + size], rng), data[8 + size :]
    if rng.random() < 0.2:
        payload = payload[: rng.randrange(len(payload) + 1)] + bytes(rng.randrange(4))
    return struct.pack("<Q", len(header)) + header + payload


def _library(data: bytes) -> dict[str, tuple[str, list[int], bytes]] | None:
    try:
        found = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # theirs, not ours
            return None
        raise
    return {name: (facts["dtype"], facts["shape"], bytes(facts["data"])) for name, facts in found}
