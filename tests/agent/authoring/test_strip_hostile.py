"""Stripping files made to break a reader: a clear error, and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from refit_agent.authoring import strip_onnx, zeroed_copy
from refit_agent.authoring.errors import ModelUnsupported, OutputRefused
from refit_agent.authoring.stripping import strip as module
from refit_agent.errors import OnnxError, OnnxExternalMissing, OnnxMalformed, OnnxUnsafePath
from refit_agent.weights.wire_writer import blob, external_tensor, integer, tensor, tensor_head, text

DATA = bytes(range(1, 101))


def model(*fields: bytes, more: bytes = b"") -> bytes:
    return integer(1, 8) + blob(7, b"".join(fields)) + more


def constant(*attribute: bytes, output: str = "c") -> bytes:
    return blob(1, text(2, output) + text(4, "Constant") + blob(5, b"".join(attribute)))


GOOD = blob(5, tensor("w", "float32", (25,), DATA))
CASES = {
    "no graph": integer(1, 8),
    "two graphs": model(GOOD, more=blob(7, b"")),
    "length that lies": model(GOOD)[:-1],
    "raw too short": model(blob(5, tensor("w", "float32", (26,), DATA))),
    "raw too long": model(blob(5, tensor("w", "float32", (24,), DATA))),
    "huge shape": model(blob(5, tensor("w", "float32", (1 << 60,), DATA))),
    "negative dimension": model(blob(5, tensor_head("w", "float32", (-1,)) + blob(9, DATA))),
    "two payloads": model(blob(5, tensor("w", "float32", (25,), DATA) + blob(4, DATA))),
    "two names": model(blob(5, tensor("w", "float32", (25,), DATA) + text(8, "v"))),
    "unknown type": model(blob(5, integer(1, 25) + integer(2, 99) + text(8, "w") + blob(9, DATA))),
    "varint cut off": model(blob(5, tensor_head("w", "int8", (70,)) + blob(5, b"\1" * 70 + b"\x80"))),
    "duplicate name": model(GOOD, GOOD),
    "duplicate of a constant": model(GOOD, constant(text(1, "value"), blob(5, tensor("", "float32", (25,), DATA)), output="w")),
    "no name": model(blob(5, tensor("", "float32", (25,), DATA))),
    "constant without output": model(constant(text(1, "value"), blob(5, tensor("t", "float32", (25,), DATA)), output="")),
    "attribute with two values": model(constant(text(1, "value_floats"), blob(7, DATA), blob(5, tensor("t", "float32", (25,), DATA)))),
    "uneven list of floats": model(constant(text(1, "value_floats"), blob(7, DATA[:-1]))),
    "initializer as varint": model(integer(5, 1)),
    "tensor as varint": model(constant(text(1, "value"), integer(5, 1))),
    "graph as varint": integer(7, 1),
    "training as varint": model(GOOD, more=integer(20, 1)),
    "group": model(GOOD, b"\x33\x34"),
    "sparse without values": model(blob(15, integer(3, 9))),
    "name not utf-8": model(blob(5, integer(1, 25) + integer(2, 1) + blob(8, b"\xff") + blob(9, DATA))),
}  # fmt: skip


def check(folder: Path, content: bytes, kind: type[Exception], *, small: bool = True) -> None:
    """Every way refuses it and writes nothing; ``small`` says whether the small form looks at what is wrong."""
    source = folder / "m.onnx"
    source.write_bytes(content)
    before = sorted(folder.iterdir())
    ways: list[Callable[[], object]] = [
        lambda: strip_onnx(source, folder / "out.onnx", zeros=True),
        lambda: zeroed_copy(source, folder / "out.onnx"),
        *([lambda: strip_onnx(source, folder / "out.onnx")] if small else []),
    ]
    for way in ways:
        with pytest.raises(kind) as caught:
            way()
        assert str(source) in str(caught.value)
        assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", CASES)
def test_malformed(tmp_path: Path, name: str) -> None:
    """Lies about lengths, shapes and types, and what is there twice or not at all."""
    check(tmp_path, CASES[name], OnnxMalformed, small=name != "varint cut off")


def test_every_truncation(tmp_path: Path) -> None:
    """Cut off anywhere, it is refused."""
    inner = blob(5, text(1, "b") + blob(6, GOOD))
    good = model(GOOD, constant(text(1, "value_floats"), blob(7, DATA)), blob(1, text(2, "y") + text(4, "If") + inner))
    (tmp_path / "m.onnx").write_bytes(good)
    assert len(zeroed_copy(tmp_path / "m.onnx", tmp_path / "out.onnx").stripped) == 3
    (tmp_path / "out.onnx").unlink()
    for size in range(len(good)):
        check(tmp_path, good[:size], OnnxMalformed)


def test_wrong_number_of_varints(tmp_path: Path) -> None:
    """The zeroed copy must have as many as the shape needs; the small one has none."""
    for count in (69, 71):
        body = model(blob(5, tensor_head("w", "int8", (70,)) + blob(5, b"\x81\1" * count)))
        check(tmp_path, body, OnnxMalformed, small=False)


def test_nesting_bomb(tmp_path: Path) -> None:
    """Graphs in graphs end at the depth at which TensorRT's parser ends."""
    body = GOOD
    for _ in range(3000):
        body = blob(1, text(2, "y") + text(4, "If") + blob(5, text(1, "b") + blob(6, body)))
    check(tmp_path, model(body), OnnxMalformed)


@pytest.mark.parametrize(
    "location, kind",
    [
        ("../secret", OnnxUnsafePath),
        ("/etc/passwd", OnnxUnsafePath),
        ("sub\\secret", OnnxUnsafePath),
        ("link", OnnxUnsafePath),
        ("missing", OnnxExternalMissing),
        ("fifo", OnnxExternalMissing),
        ("short", OnnxMalformed),
    ],
)
def test_external_data_out_of_reach(tmp_path: Path, location: str, kind: type[OnnxError]) -> None:
    """Nothing outside of the model's folder is read, nor waited for; what stays would be copied into the copy."""
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(DATA * 9)
    (folder / "link").symlink_to("../secret")
    (folder / "short").write_bytes(DATA[:50])
    os.mkfifo(folder / "fifo")
    for dtype, count in (("float32", 25), ("int64", 12)):
        check(folder, model(blob(5, external_tensor("w", dtype, (count,), location, 0, count * (4 + 4 * (dtype == "int64"))))), kind)  # fmt: skip


def test_names_that_an_old_model_could_not_load(tmp_path: Path) -> None:
    """The copy names its own zeros, so its name must be one that every system can load."""
    (tmp_path / "m.onnx").write_bytes(model(GOOD))
    for name in ("a\\b.onnx", "C:x.onnx", os.fsdecode(b"\xff.onnx")):
        with pytest.raises(OutputRefused):
            strip_onnx(tmp_path / "m.onnx", tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_zeros_that_would_be_the_weights(tmp_path: Path) -> None:
    """A copy must not name a file of the original's as its own zeros, in neither form."""
    (tmp_path / "s.onnx.zeros").write_bytes(DATA)
    (tmp_path / "m.onnx").write_bytes(model(blob(5, external_tensor("w", "float32", (25,), "s.onnx.zeros", 0, 100))))
    for zeros in (True, False):
        with pytest.raises(OutputRefused, match="the same file as"):
            strip_onnx(tmp_path / "m.onnx", tmp_path / "s.onnx", zeros=zeros)
    assert (tmp_path / "s.onnx.zeros").read_bytes() == DATA and not (tmp_path / "s.onnx").exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_model_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """A copy that is half of one model and half of another is not published, whenever the model is replaced."""
    source = tmp_path / "m.onnx"
    source.write_bytes(model(GOOD))
    name = "splice" if when == "before" else "encode_marker"
    real = getattr(module, name)

    def replaced(*arguments: object) -> object:
        (tmp_path / "new").write_bytes(model(GOOD))
        os.replace(tmp_path / "new", source)
        return real(*arguments)

    monkeypatch.setattr(module, name, replaced)
    with pytest.raises(ModelUnsupported, match="changed while it was read"):
        strip_onnx(source, tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_stopped(tmp_path: Path) -> None:
    """What the progress callback raises comes out, and nothing is left of the copy."""
    (tmp_path / "m.onnx").write_bytes(model(GOOD))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for zeros in (True, False):
        with pytest.raises(KeyboardInterrupt):
            strip_onnx(tmp_path / "m.onnx", tmp_path / "out.onnx", zeros=zeros, on_progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_what_is_not_a_file(tmp_path: Path) -> None:
    """Missing, empty, a folder, a FIFO."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, kind in (("missing", ModelUnsupported), ("empty", OnnxMalformed), ("fifo", OnnxMalformed), ("folder", OnnxMalformed)):  # fmt: skip
        with pytest.raises(kind):
            strip_onnx(tmp_path / name, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
