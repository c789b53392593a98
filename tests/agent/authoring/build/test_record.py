"""The record of a build: everything that the manifest's entry needs, read back exactly or not at all."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit_agent.authoring.build.messages import EngineWeight
from refit_agent.authoring.build.options import BuildOptions
from refit_agent.authoring.build.record import (
    BuildRecord,
    RecordedFile,
    find_record,
    model_misfit,
    read_record,
    record_path,
    weights_digest,
    write_record,
)
from refit_agent.authoring.build.shapes import make_profile
from refit_agent.authoring.errors import RecordInvalid
from refit_agent.manifest import Engine, FileRef, Model

A, B, C = ("abc"[i] * 64 for i in range(3))


def a_record(**changes: Any) -> BuildRecord:
    profile = make_profile("big", {"min": "x:1x3", "opt": "x:2x3", "max": "x:4x3"})
    facts: dict[str, Any] = {
        "plan": RecordedFile(path="net.big.plan", size=10, sha256=C),
        "onnx": RecordedFile(path="net.onnx", size=20, sha256=A),
        "external": (RecordedFile(path="net.onnx.data", size=30, sha256=B),),
        "source": RecordedFile(path="/models/net.onnx", size=40, sha256=C),
        "canonical": True,
        "runtime": "tensorrt",
        "built_with": "10.16.1.11",
        "version_compatible": True,
        "host_code": False,
        "os": ("linux",),
        "arch": "x86_64",
        "compute_capabilities": ("9.0",),
        "min_compute_capability": None,
        "hardware_compatibility": "none",
        "gpu": "NVIDIA H100 80GB HBM3",
        "driver": "580.159.04",
        "profile": "big",
        "precision": "fp16",
        "strip": "plan",
        "refit": "identical",
        "refittable": True,
        "weights_sha256": B,
        "weight_map": {"w": {"from": "w"}, "t": {"fill": 0.5, "count": 2, "dtype": "float32"}},
        "weights": (EngineWeight(name="w", dtype="float32", count=4), EngineWeight(name="t", dtype=None, count=None)),
        "plan_size": 10,
        "plan_sha256": C,
        "builder": "tensorrt 10.16.1.11",
        "options": BuildOptions(strip="plan", refit="identical", profiles=(profile,)),
        "seconds": {"build": 12.5},
        "notes": ("a warning",),
    }
    return BuildRecord(**{**facts, **changes})


def test_written_and_read(tmp_path: Path) -> None:
    """Beside the plan, as JSON for people too; nothing is lost."""
    record = a_record()
    path = record_path(str(tmp_path / "net.big.plan"))
    assert path.endswith("net.big.plan.json")
    write_record(path, record)
    assert read_record(path) == record == find_record(str(tmp_path / "net.big.plan"))
    assert json.loads(Path(path).read_text())["gpu"] == "NVIDIA H100 80GB HBM3"
    with pytest.raises(FileExistsError):
        write_record(path, record)


FIELDS = ("runtime", "built_with", "version_compatible", "os", "compute_capabilities", "min_compute_capability", "hardware_compatibility", "gpu", "min_driver", "profile", "precision", "strip", "refit", "weights_sha256", "weight_map", "plan_size", "plan_sha256", "include_refit", "lean_runtime", "host_code")  # fmt: skip


def test_it_has_what_an_engine_in_the_manifest_says_of_its_build() -> None:
    """Under the same names, in the same form."""
    engine = Engine(path="p", size=10, sha256=C, **{field: getattr(a_record(), field) for field in FIELDS})
    assert msgspec.json.decode(msgspec.json.encode(engine), type=Engine) == engine


def test_no_record_is_no_error(tmp_path: Path) -> None:
    """A plan may come from elsewhere."""
    assert find_record(str(tmp_path / "net.plan")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"built_with": "ten"},
        {"plan_sha256": "x"},
        {"plan_size": -1},
        {"strip": "weights"},
        {"min_driver": "525"},
        {"weights": [{"name": 1}]},
        {"options": {"optimization_level": 9}},
        {"compute_capabilities": ["hopper"]},
    ],
)
def test_a_record_that_says_what_cannot_be(tmp_path: Path, change: dict[str, Any]) -> None:
    """The field is named."""
    document = {**msgspec.to_builtins(a_record()), **change}
    (tmp_path / "r.json").write_text(json.dumps(document))
    with pytest.raises(RecordInvalid, match=next(iter(change))) as caught:
        read_record(str(tmp_path / "r.json"))
    assert caught.value.code == "build-record-invalid"


WHOLE = msgspec.json.encode(a_record())


@given(cut=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_damaged_records(tmp_path_factory: pytest.TempPathFactory, cut: int, byte: int) -> None:
    """Cut short or with one byte changed: read as something valid, or our error."""
    path = tmp_path_factory.mktemp("r") / "r.json"
    path.write_bytes(WHOLE[:cut])
    with pytest.raises(RecordInvalid):
        read_record(str(path))
    path.write_bytes(WHOLE[:cut] + bytes([byte]) + WHOLE[cut + 1 :])
    with contextlib.suppress(RecordInvalid):
        assert isinstance(read_record(str(path)), BuildRecord)


def test_absurd_records(tmp_path: Path) -> None:
    """A folder, nesting without end, gigabytes."""
    with pytest.raises(RecordInvalid, match="cannot be read"):
        read_record(str(tmp_path))
    (tmp_path / "deep").write_bytes(b'{"weight_map":' + b"[" * 100_000)
    with pytest.raises(RecordInvalid):
        read_record(str(tmp_path / "deep"))
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(RecordInvalid, match="more than"):
        read_record(str(tmp_path / "large"))


def test_whose_plan_it_is() -> None:
    """By the hashes of the model's files, wherever they lie in a bundle."""
    record = a_record()
    onnx = FileRef(path="models/net/net.onnx", size=20, sha256=A)
    data = FileRef(path="models/net/net.onnx.data", size=30, sha256=B)
    model = Model(name="net", onnx=onnx, external=(data,), engines=())
    assert model_misfit(record, model) == ""
    other = msgspec.structs.replace(onnx, sha256=B)
    assert "ONNX file with SHA-256 a" in model_misfit(record, msgspec.structs.replace(model, onnx=other))
    assert "external data" in model_misfit(record, msgspec.structs.replace(model, external=()))


def test_the_digest_is_the_manifest_s() -> None:
    """Over the same paths it is that of the model."""
    onnx, data = (FileRef(path=p, size=1, sha256=s) for p, s in (("net.onnx", A), ("net.onnx.data", B)))
    record = a_record()
    assert weights_digest(record.onnx, record.external) == Model(name="m", onnx=onnx, external=(data,), engines=()).weights_digest()  # fmt: skip
    assert weights_digest(record.onnx, ()) == A
