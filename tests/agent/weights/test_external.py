"""External data: where it may lie, and that its size does not matter."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from refit_agent.errors import BundleFileUnreadable, OnnxExternalMissing, OnnxMalformed, OnnxUnsafePath
from refit_agent.weights import OnnxWeights

from .onnx_bytes import external, graph, model, sub, tensor

DATA = np.arange(4, dtype="<f4").tobytes()


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "bundle"
    (inside / "sub").mkdir(parents=True)
    for place in (inside / "d.bin", inside / "sub" / "d.bin", tmp_path / "outside.bin"):
        place.write_bytes(DATA)
    return inside


def write(folder, *tensors: bytes):
    path = folder / "m.onnx"
    path.write_bytes(model(graph(*tensors)))
    return path


@pytest.mark.parametrize("location", ["d.bin", "sub/d.bin", "./d.bin", "sub//d.bin"])
@pytest.mark.parametrize(
    "entries", [{}, {"offset": "4"}, {"offset": "8", "length": "8", "checksum": "?", "other": "x"}]
)
def test_read(folder, location, entries):
    path = write(folder, external(location=location, **entries))
    with OnnxWeights(path) as weights:
        ref = weights["w"]
        start = int(entries.get("offset", 0))
        assert ref.array().tobytes() == DATA[start : start + 8]
        assert ref.file == (folder / location).resolve() and ref.offset == start and ref.is_view


def test_relative_model_path_and_other_root(folder, tmp_path, monkeypatch):
    write(folder, external(location="d.bin"))
    monkeypatch.chdir(folder)
    with OnnxWeights("m.onnx") as weights:
        assert weights["w"].array().tolist() == [0, 1]
    with OnnxWeights("m.onnx", external_root=folder / "sub") as weights:
        assert weights["w"].file == folder.resolve() / "sub" / "d.bin"
    with OnnxWeights("m.onnx", external_root=tmp_path) as weights, pytest.raises(OnnxExternalMissing):
        weights["w"]


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../outside.bin", "sub/../d.bin", "sub/..", "..", "..\\outside.bin", "sub\\d.bin", "C:/d.bin", "c:d.bin",
     "sub/C:x", "\\\\host\\share", "//host/share", "d.bin\0.txt", ""],
)  # fmt: skip
def test_unsafe_locations(folder, location):
    path = write(folder, external(location=location))
    with OnnxWeights(path) as weights, pytest.raises(OnnxUnsafePath) as caught:
        weights["w"]
    assert caught.value.facts["path"] == str(path) and caught.value.facts["location"] == location
    assert 0 < caught.value.facts["offset"] < path.stat().st_size


@pytest.mark.parametrize("link", ["file", "folder", "absolute", "chain"])
def test_links_may_not_lead_out(folder, tmp_path, link):
    location = "link.bin"
    if link == "file":
        (folder / location).symlink_to("../outside.bin")
    elif link == "absolute":
        (folder / location).symlink_to(tmp_path / "outside.bin")
    elif link == "folder":
        (folder / "out").symlink_to(tmp_path)
        location = "out/outside.bin"
    else:
        (folder / location).symlink_to("second")
        (folder / "second").symlink_to("../outside.bin")
    path = write(folder, external(location=location))
    with OnnxWeights(path) as weights, pytest.raises(OnnxUnsafePath):
        weights["w"]


def test_links_may_stay_inside(folder, tmp_path):
    (folder / "link.bin").symlink_to("sub/d.bin")
    (tmp_path / "alias").symlink_to(folder)
    write(folder, external(location="link.bin"))
    with OnnxWeights(tmp_path / "alias" / "m.onnx") as weights:
        assert weights["w"].array().tolist() == [0, 1]


def test_a_folder_that_begins_alike_is_outside(folder, tmp_path):
    twin = tmp_path / "bundle2"
    twin.mkdir()
    (twin / "d.bin").write_bytes(DATA)
    (folder / "link").symlink_to(twin / "d.bin")
    with OnnxWeights(write(folder, external(location="link"))) as weights, pytest.raises(OnnxUnsafePath):
        weights["w"]


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "loop", "long"])
def test_unreadable(folder, kind):
    location = "x" * 5000 if kind == "long" else "odd"
    if kind == "folder":
        (folder / "odd").mkdir()
    elif kind == "fifo":
        os.mkfifo(folder / "odd")
    elif kind == "loop":
        (folder / "odd").symlink_to("odd")
    with (
        OnnxWeights(write(folder, external(location=location))) as weights,
        pytest.raises(OnnxExternalMissing) as caught,
    ):
        weights["w"]
    assert caught.value.facts["location"] == location and caught.value.facts["offset"] > 0


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "9"},
        {"offset": "16"},
        {"offset": str(2**63)},
        {"offset": "-4"},
        {"offset": "+4"},
        {"offset": "0x4"},
        {"offset": " 4"},
        {"offset": ""},
        {"offset": "٤"},
        {"offset": "9" * 5000},
        {"length": "0"},
        {"length": "4"},
        {"length": "16"},
        {"length": "-8"},
    ],
)
def test_bad_ranges(folder, entries):
    path = write(folder, external(location="d.bin", **entries))
    with OnnxWeights(path) as weights, pytest.raises(OnnxMalformed) as caught:
        weights["w"]
    assert caught.value.facts["path"] == str(path) and caught.value.facts["offset"] > 0


@pytest.mark.parametrize(
    "data",
    [
        external(offset="0"),
        external(location="d.bin") + sub(9, DATA[:8]),
        external(location="d.bin") + sub(4, DATA[:8]),
        external(location="d.bin") + sub(13, sub(1, "location") + sub(2, "sub/d.bin")),
        external(data_type=8, location="d.bin"),
        tensor("w", (2,), 1, more=b"\x70\x02"),
    ],
    ids=["no location", "raw too", "typed too", "two locations", "strings", "unknown place"],
)
def test_contradictions(folder, data):
    with OnnxWeights(write(folder, data)) as weights, pytest.raises(OnnxMalformed):
        weights["w"]


def test_a_file_is_opened_once_to_check_and_once_to_map(folder, monkeypatch):
    path = write(folder, *(external(f"t{i}", (1,), location="d.bin") for i in range(20)))
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, *rest, **more: opened.append(str(name)) or real(name, *rest, **more))
    with OnnxWeights(path) as weights:
        refs = list(weights.values())
        assert sum(name.endswith("d.bin") for name in opened) == 1
        for ref in refs:
            ref.array()
        assert sum(name.endswith("d.bin") for name in opened) == 2


def test_a_file_that_changes_meanwhile(folder):
    with OnnxWeights(write(folder, external(location="d.bin"))) as weights:
        ref = weights["w"]
        (folder / "new").write_bytes(DATA + DATA)
        (folder / "new").rename(folder / "d.bin")
        with pytest.raises(OnnxExternalMissing, match="changed"):
            ref.array()


def test_arrays_outlive_close(folder):
    with OnnxWeights(write(folder, external(location="d.bin"))) as weights:
        array = weights["w"].array()
    assert array.tolist() == [0, 1]


def test_more_than_4_gib(folder):
    size = (4 << 30) + 4096
    with open(folder / "big.bin", "wb") as file:
        file.truncate(size)
        file.seek(size - 8)
        file.write(DATA[4:12])
    write(
        folder,
        external("head", ((1 << 30) + 1022,), location="big.bin", length=str(size - 8)),
        external("tail", (2,), location="big.bin", offset=str(size - 8)),
    )
    with OnnxWeights(folder / "m.onnx") as weights:
        assert weights["tail"].array().tolist() == [1, 2]
        head = weights["head"].array()
        assert head.nbytes == size - 8 and head[-1] == 0
        assert head.ctypes.data + head.nbytes == weights["tail"].array().ctypes.data


def test_a_model_of_more_than_2_gib(tmp_path):
    """Protobuf itself stops at 2 GiB; the walk does not care."""
    raw = (2 << 30) + 4096
    header = tensor("w", (raw,), 2) + b"\x4a" + b"\x80\xa0\x80\x80\x08"
    behind = b"\x2a" + bytes([len(tensor("v", (), 2, b"\x07"))]) + tensor("v", (), 2, b"\x07")
    size = len(header) + raw
    record = b"\x2a" + _five(size) + header
    body = len(record) + raw + len(behind)
    start = b"\x3a" + _five(body) + record
    path = tmp_path / "m.onnx"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(len(start) + raw)
        file.seek(len(start) + raw)
        file.write(behind)
    with OnnxWeights(path) as weights:
        assert list(weights) == ["w", "v"]
        assert weights["v"].array() == 7
        assert weights["w"].array().shape == (raw,)


def _five(value: int) -> bytes:
    return bytes(value >> 7 * i & 0x7F | (0x80 if i < 4 else 0) for i in range(5))


def test_a_file_that_cannot_be_opened_now_is_not_called_missing(folder, monkeypatch):
    path = write(folder, external(location="d.bin"))

    def fail(name, *args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)

    with OnnxWeights(path) as weights:
        monkeypatch.setattr("refit_agent.weights.external.open_regular", fail)
        with pytest.raises(BundleFileUnreadable, match=r"d\.bin.*Too many open files"):
            weights["w"]
