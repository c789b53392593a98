from __future__ import annotations

from pathlib import Path

import pytest

from refit_agent import read_plan_header
from refit_agent.errors import PlanInvalid
from refit_agent.manifest import Engine
from refit_agent.plan_header import check_against_manifest, parse_plan_header


def plan(magic: bytes = b"ftrt", size: int = 100, version: bytes = bytes([10, 16, 1, 11])) -> bytes:
    return (magic + bytes(12) + size.to_bytes(8, "little") + version).ljust(100, b"\1")


def _engine(runtime: str, built_with: str) -> Engine:
    return Engine(path="p", size=100, sha256="0" * 64, runtime=runtime, built_with=built_with, plan_size=100)  # type: ignore[arg-type]


def test_the_header_says_whose_plan_it_is_and_what_built_it(tmp_path: Path) -> None:
    """Both magics are known, from a file and from memory."""
    (tmp_path / "plan").write_bytes(plan())
    header = read_plan_header(tmp_path / "plan")
    assert (header.runtime, header.version, header.size) == ("tensorrt", (10, 16, 1, 11), 100)
    assert parse_plan_header(memoryview(plan(b"vtrt")), 100, "p").runtime == "tensorrt-rtx"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "begins with b''"),
        (b"PK\3\4" + bytes(96), "begins with b'PK"),
        (plan()[:27], "cut short: it has 27 bytes"),
        (plan()[:99], "gives 100 bytes and it has 99"),
        (plan(size=2**64 - 1), "and it has 100"),
    ],
)
def test_what_is_no_whole_plan_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    """The message says what was found instead."""
    (tmp_path / "plan").write_bytes(data)
    with pytest.raises(PlanInvalid) as info:
        read_plan_header(tmp_path / "plan")
    assert says in str(info.value)


def test_a_plan_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    """Missing files and folders too."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(PlanInvalid, match="cannot be read"):
            read_plan_header(path)


def test_the_manifest_must_describe_the_plan() -> None:
    """Runtime and builder are compared, in as many parts as the manifest gives."""
    header = parse_plan_header(plan(), 100, "p")
    for version in ("10.16", "10.16.1", "10.16.1.11"):
        check_against_manifest(header, _engine("tensorrt", version), "p")
    with pytest.raises(PlanInvalid, match="a plan for tensorrt, and the manifest says tensorrt-rtx"):
        check_against_manifest(header, _engine("tensorrt-rtx", "10.16.1"), "p")
    with pytest.raises(PlanInvalid, match=r"built with 10\.16\.1\.11, and the manifest says 10\.16\.2"):
        check_against_manifest(header, _engine("tensorrt", "10.16.2"), "p")
