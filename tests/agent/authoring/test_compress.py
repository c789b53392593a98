"""Plans in shipped form: the same again once unpacked, whatever they hold."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_files import plan_bytes
from refit_agent.authoring import compress
from refit_agent.authoring.compress import compress_plan, seems_to_hold_weights, share_kept
from refit_agent.authoring.errors import EngineRefused, SourceUnreadable

pieces = st.lists(
    st.one_of(
        st.integers(1, 300_000).map(bytes),
        st.binary(min_size=1, max_size=2000),
        st.tuples(st.binary(min_size=1, max_size=50), st.integers(1, 3000)).map(lambda p: p[0] * p[1]),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(pieces)
def test_every_plan_comes_out_as_it_went_in(parts: list[bytes]) -> None:
    """Zeros, noise and patterns, in any order."""
    with tempfile.TemporaryDirectory() as folder:
        data = b"".join(parts)
        Path(folder, "plan").write_bytes(data)
        counted: list[int] = []
        shipped = compress_plan(f"{folder}/plan", f"{folder}/out", "zstd", counted.append)
        packed = Path(folder, "out").read_bytes()
        assert (shipped.size, shipped.plan_size) == (len(packed), len(data))
        assert zstandard.ZstdDecompressor().decompress(packed) == data
        assert sum(counted) == 2 * len(data), "read once, proved once"


def test_a_frame_says_how_large_it_is_and_needs_little_memory(tmp_path: Path) -> None:
    """A user's machine learns both before it unpacks anything."""
    (tmp_path / "plan").write_bytes(bytes(40 << 20))
    compress_plan(str(tmp_path / "plan"), str(tmp_path / "out"), "zstd")
    frame = zstandard.get_frame_parameters((tmp_path / "out").read_bytes())
    assert frame.content_size == 40 << 20
    assert frame.window_size <= 8 << 20


def test_what_does_not_unpack_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof reads what was written."""
    (tmp_path / "plan").write_bytes(plan_bytes())
    real = compress._compress

    def damage(plan: str, target: str, on_bytes: object) -> tuple[str, int]:
        found = real(plan, target, None)
        data = bytearray(Path(target).read_bytes())
        data[len(data) // 2] ^= 0xFF
        Path(target).write_bytes(data)
        return found

    monkeypatch.setattr(compress, "_compress", damage)
    with pytest.raises(EngineRefused, match="what was compressed"):
        compress_plan(str(tmp_path / "plan"), str(tmp_path / "out"), "zstd")


def test_weights_are_told_from_code_and_zeros(tmp_path: Path) -> None:
    """By how little they shrink."""
    for name, data, expected in (
        ("weights", plan_bytes(weights=True), True),
        ("stripped", plan_bytes(), False),
        ("zeros", bytes(1 << 20), False),
        ("code", b"".join(os.path.basename(__file__).encode() + bytes([i % 7]) for i in range(5000)), False),
        ("nothing", b"", False),
    ):
        (tmp_path / name).write_bytes(data)
        assert seems_to_hold_weights(share_kept(str(tmp_path / name))) is expected, name


def test_a_plan_that_cannot_be_read(tmp_path: Path) -> None:
    """Is named."""
    with pytest.raises(SourceUnreadable, match="none"):
        compress_plan(str(tmp_path / "none"), str(tmp_path / "out"), "zstd")
    with pytest.raises(SourceUnreadable, match="none"):
        compress_plan(str(tmp_path / "none"), str(tmp_path / "other"), "none")
