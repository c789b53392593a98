from __future__ import annotations

import lzma
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundles import compressed
from refit_agent.errors import PlanInvalid, RefitError
from refit_agent.manifest import Engine
from refit_agent.refit.unpack import PlanImage, unpack

DATA = os.urandom(3000) + bytes(200_000) + os.urandom(70_000) + bytes(5)
BOTH = pytest.mark.parametrize("kind", ["zstd", "xz"])
ALL = pytest.mark.parametrize("kind", ["none", "zstd", "xz"])


def engine(size: int, kind: str = "none") -> Engine:
    return Engine(path="p", size=1, sha256="0" * 64, runtime="onnxruntime", built_with="1.0", plan_size=size, compression=kind)  # type: ignore[arg-type]  # fmt: skip


def _bytes(path: Path, kind: str, size: int) -> bytes:
    image = unpack(str(path), engine(size, kind))
    try:
        assert image.view.readonly
        return bytes(image.view)
    finally:
        image.close()


@ALL
def test_a_plan_comes_out_as_it_went_in(tmp_path: Path, kind: str) -> None:
    """With its stretches of zeros; progress ends at the whole."""
    path = tmp_path / "plan"
    path.write_bytes(compressed(DATA, kind))
    assert _bytes(path, kind, len(DATA)) == DATA
    seen: list[tuple[int, int]] = []
    unpack(str(path), engine(len(DATA), kind), lambda done, total: seen.append((done, total))).close()
    assert kind == "none" or seen[-1] == (len(DATA), len(DATA))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 150_000)), min_size=1, max_size=5), st.sampled_from(["zstd", "xz"])
)
def test_any_mixture_of_zeros_and_data_comes_out_as_it_went_in(
    tmp_path: Path, parts: list[tuple[bool, int]], kind: str
) -> None:
    """Blocks of zeros are skipped, wherever they begin and end."""
    data = b"".join(b"\xab" * count if full else bytes(count) for full, count in parts)
    (tmp_path / "plan").write_bytes(compressed(data, kind))
    assert _bytes(tmp_path / "plan", kind, len(data)) == data


@ALL
@pytest.mark.parametrize("wrong", [-1, 1, 1 << 20])
def test_another_size_than_the_manifest_s_is_refused(tmp_path: Path, kind: str, wrong: int) -> None:
    """Larger or smaller, compressed or not."""
    path = tmp_path / "plan"
    path.write_bytes(compressed(DATA, kind))
    with pytest.raises(PlanInvalid, match="bytes"):
        unpack(str(path), engine(len(DATA) + wrong, kind))


def test_an_empty_plan_is_refused(tmp_path: Path) -> None:
    """Nothing can be mapped of it."""
    (tmp_path / "plan").write_bytes(b"")
    with pytest.raises(PlanInvalid, match="plan_size of 0"):
        unpack(str(tmp_path / "plan"), engine(0))


@BOTH
@pytest.mark.parametrize("keep", [0, 3, 0.5, -1])
def test_a_stream_that_was_cut_short_is_refused(tmp_path: Path, kind: str, keep: float) -> None:
    """Wherever the cut is."""
    data = compressed(DATA, kind)
    (tmp_path / "plan").write_bytes(data[: int(keep * len(data)) if keep == 0.5 else int(keep)])
    if kind == "zstd" and keep == -1:
        return  # only the checksum's last byte: the file's own SHA-256 has shown it before
    with pytest.raises(PlanInvalid):
        unpack(str(tmp_path / "plan"), engine(len(DATA), kind))


@BOTH
def test_garbage_is_refused_and_named(tmp_path: Path, kind: str) -> None:
    """The message says which compression it should have been."""
    for data in (b"garbage" * 100, compressed(DATA, "xz" if kind == "zstd" else "zstd")):
        (tmp_path / "plan").write_bytes(data)
        with pytest.raises(PlanInvalid, match=f"its {kind} data is damaged"):
            unpack(str(tmp_path / "plan"), engine(len(DATA), kind))


def _bomb(kind: str) -> bytes:
    """A gigabyte of ones in a few kilobytes."""
    block = b"\1" * (16 << 20)
    if kind == "zstd":
        packer = zstandard.ZstdCompressor().compressobj()
        return b"".join([*(packer.compress(block) for _ in range(64)), packer.flush()])
    xz = lzma.LZMACompressor(preset=0)
    return b"".join([*(xz.compress(block) for _ in range(16)), xz.flush()])


@pytest.fixture(scope="module", params=["zstd", "xz"])
def bomb(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    path = tmp_path_factory.mktemp("bomb") / "plan"
    path.write_bytes(_bomb(request.param))
    yield request.param, path


def test_a_bomb_is_stopped_at_the_manifest_s_size(bomb: tuple[str, Path]) -> None:
    """It takes no more memory than the manifest said."""
    kind, path = bomb
    resource = pytest.importorskip("resource", reason="limits as POSIX has them")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PlanInvalid, match="unpacks to more than the 1000000 bytes"):
        unpack(str(path), engine(1_000_000, kind))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 << 10


@BOTH
def test_a_window_of_gigabytes_is_refused(tmp_path: Path, kind: str) -> None:
    """Whatever the file asks for, the decoder takes no more than the highest presets need."""
    if kind == "zstd":
        # Magic, a frame header with a window of 2 GiB, one raw block of one byte.
        data = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0xA8]) + bytes([0x09, 0, 0]) + b"x"
    else:
        data = lzma.compress(DATA, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 20}])
        header = bytearray(data[12:24])
        assert header[4] == 16  # the dictionary's size in the block header: 1 MiB
        header[4] = 39  # 3 GiB
        import zlib

        header[8:12] = zlib.crc32(bytes(header[:8])).to_bytes(4, "little")
        data = data[:12] + bytes(header) + data[24:]
    (tmp_path / "plan").write_bytes(data)
    with pytest.raises(PlanInvalid, match="damaged"):
        unpack(str(tmp_path / "plan"), engine(len(DATA), kind))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_zeros_take_no_memory(tmp_path: Path) -> None:
    """Most of a plan from zeroed weights is zeros."""
    size = 256 << 20
    (tmp_path / "plan").write_bytes(zstandard.ZstdCompressor().compress(bytes(size)))
    image = unpack(str(tmp_path / "plan"), engine(size, "zstd"))
    held = _resident_bytes()
    image.close()
    assert held - _resident_bytes() < size // 8


def test_more_than_the_machine_s_memory_is_an_error_in_words(tmp_path: Path) -> None:
    """It says how much, and is not called a fault of the cache or of the plan."""
    (tmp_path / "plan").write_bytes(compressed(DATA, "zstd"))
    with pytest.raises(RefitError, match="not enough memory") as info:
        unpack(str(tmp_path / "plan"), engine(1 << 50, "zstd"))
    assert info.value.code == RefitError.code


def test_closing_while_somebody_looks_leaves_the_bytes_to_them(tmp_path: Path) -> None:
    """An error on its way is not replaced by one about buffers."""
    (tmp_path / "plan").write_bytes(DATA)
    image: PlanImage = unpack(str(tmp_path / "plan"), engine(len(DATA)))
    look = struct.iter_unpack("3000s", image.view[: len(DATA) // 3000 * 3000])
    hold = struct.iter_unpack("B", image.view)  # as hashlib holds it, unlike a memoryview of it
    image.close()
    assert next(look) == (DATA[:3000],)
    del look, hold
    image.close()
    image.close()
