from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from refit_agent.errors import BundleFileMismatch, GoldenMismatch
from refit_agent.manifest import FileRef
from refit_agent.refit.golden import compare, load_arrays, relative_error, require_no_nan
from refit_agent.refit.messages import Located


def _file(path: Path) -> dict[str, Located]:
    return {"x": Located(path=str(path), ref=FileRef(path="x", size=1, sha256="0" * 64))}


def _npz() -> bytes:
    data = io.BytesIO()
    np.savez(data, x=np.zeros(2))
    return data.getvalue()


def _zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a", "b")
    return data.getvalue()[:-5]


def _npy(header: str) -> bytes:
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _pickled() -> bytes:
    data = io.BytesIO()
    np.save(data, np.array([object()]), allow_pickle=True)
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array",
        _npz(),
        _zip(),
        _pickled(),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"),
        _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        _npy("__import__('os').abort()"),
    ],
    ids=["empty", "text", "npz", "zip", "pickle", "short", "huge", "negative", "code"],
)
def test_what_is_no_array_is_refused_and_never_unpickled(tmp_path: Path, data: bytes) -> None:
    """A hostile file costs neither memory nor control."""
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(BundleFileMismatch, match=r"not a \.npy array"):
        load_arrays(_file(tmp_path / "x"))


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.float16(3), np.zeros((0, 4)), np.asfortranarray(np.eye(3))]
)
def test_arrays_come_back_as_they_were_saved(tmp_path: Path, array: np.ndarray) -> None:
    """Of every shape, empty ones too."""
    np.save(tmp_path / "x.npy", array)
    loaded = load_arrays(_file(tmp_path / "x.npy"))["x"]
    assert loaded.dtype == np.asarray(array).dtype
    assert np.array_equal(loaded, array)


def test_the_error_is_relative_to_the_expected_output() -> None:
    """And absolute where nothing but zeros is expected; half precision does not overflow."""
    assert relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(np.array([0.25]), np.array([0.0])) == 0.25
    big = np.full(1000, 60000, np.float16)
    assert relative_error(big, big) == 0
    assert relative_error(np.zeros(0), np.zeros(0)) == 0


def test_outputs_within_tolerance_give_the_worst_error() -> None:
    """Outputs that nobody expects are not looked at."""
    got = {"a": np.array([1.0]), "b": np.array([1.01]), "c": np.array([np.nan])}
    assert compare(got, {"a": np.array([1.0]), "b": np.array([1.0])}, 0.02) == pytest.approx(0.01)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    ("got", "says"),
    [
        ({}, "output 'y' is missing"),
        ({"y": np.zeros((2, 1))}, r"output 'y' has the shape \(2, 1\) in place of \(2,\)"),
        (
            {"y": np.array([1.0, 2.5])},
            r"output 'y' differs from the expected one by 0\.22\d \(relative L2\), and 0\.01 is",
        ),
        ({"y": np.array([1.0, np.nan])}, "by nan"),
        ({"y": np.array([1.0, np.inf])}, "by inf"),
    ],
)
def test_wrong_outputs_are_refused_in_words(got: dict[str, np.ndarray], says: str) -> None:
    """A missing output, another shape, another value and no number at all."""
    with pytest.raises(GoldenMismatch, match=says):
        compare(got, {"y": np.array([1.0, 2.0])}, 0.01)


def test_a_run_without_golden_data_must_give_no_nan() -> None:
    """Whole numbers have none, and infinities may be meant: masks are made of them."""
    require_no_nan({"a": np.array([1, 2]), "b": np.array([1.0, -np.inf])})
    with pytest.raises(GoldenMismatch, match="'b' holds a NaN"):
        require_no_nan({"b": np.array([1.0, np.nan], np.float16)})
