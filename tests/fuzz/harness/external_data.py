"""Where an ONNX file says that its weights lie: nothing outside of its folder may be read, nor anything waited for.

The input is text, an entry of external data a line (``key=value``), before that the number of elements.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from refit_agent.errors import RefitAgentError
from refit_agent.weights import OnnxWeights
from refit_agent.weights.wire_writer import blob, integer, text

from .. import sandbox

_ABOVE = sandbox.folder("external")
_FOLDER = _ABOVE / "model"
_SECRET = b"this is nobody's business, and long enough for a tensor of several elements\n" * 4
_WORDS = ("w.bin", "sub/v.bin", "link", "out", "up/secret", "fifo", "..", "secret", "sub", "/", ".", "location=", "offset=", "length=", "-", "0", "9", "\\", "C:", "\n", "\0", "é")  # fmt: skip

(_FOLDER / "sub").mkdir(parents=True)
(_ABOVE / "secret").write_bytes(_SECRET)
(_FOLDER / "w.bin").write_bytes(bytes(range(256)))
(_FOLDER / "sub" / "v.bin").write_bytes(bytes(range(128, 256)))
(_FOLDER / "link").symlink_to("w.bin")
(_FOLDER / "out").symlink_to("../secret")
(_FOLDER / "up").symlink_to("..")
(_FOLDER / "loop").symlink_to("loop")
os.mkfifo(_FOLDER / "fifo")


def check(data: bytes) -> bool:
    """Open a model with one weight at the place that ``data`` gives."""
    first, *lines = data.decode("utf-8", "replace").split("\n")
    count = int(first) if first.isascii() and first.isdigit() and len(first) < 20 else 1
    entries = b"".join(blob(13, text(1, k) + text(2, v)) for k, _, v in (line.partition("=") for line in lines))
    tensor = integer(1, count) + integer(2, 2) + text(8, "w") + entries + integer(14, 1)
    path = _FOLDER / "m.onnx"
    path.write_bytes(integer(1, 8) + blob(7, blob(5, tensor)))
    try:
        with OnnxWeights(path) as weights:
            ref = weights["w"]
            content = ref.array().tobytes()
            files = weights.external_files()
    except RefitAgentError as error:
        assert str(error)
        return False
    assert files == (ref.file,)
    real = Path(os.path.realpath(ref.file))
    assert real.is_relative_to(os.path.realpath(_FOLDER)), f"{real} is outside"
    assert len(content) == count
    assert real.read_bytes()[ref.offset : ref.offset + count] == content
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A word put in, or a piece taken out."""
    place = rng.randrange(len(data) + 1)
    if rng.random() < 0.3:
        return data[:place] + data[place + rng.randrange(1, 6) :]
    return data[:place] + rng.choice(_WORDS).encode() + data[place + rng.choice((0, 0, 1, 4)) :]
