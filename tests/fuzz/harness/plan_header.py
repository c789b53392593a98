"""The first bytes of a plan, and whether they are what the manifest says, against a reading of our own."""

from __future__ import annotations

import struct

from refit_agent.errors import PlanInvalid
from refit_agent.manifest import Engine
from refit_agent.plan_header import check_against_manifest, parse_plan_header, read_plan_header

from .. import sandbox

_PATH = sandbox.folder("plan") / "a.plan"
_MAGIC = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}


def check(data: bytes) -> bool:
    """Read ``data`` as a plan file."""
    _PATH.write_bytes(data)
    try:
        header = read_plan_header(_PATH)
    except PlanInvalid as error:
        assert str(error)
        assert not _is_plan(data), "a plan was refused"
        _cut(data)
        return False
    assert _is_plan(data), "this is no plan"
    assert header == (data[:4], _MAGIC[data[:4]], tuple(data[24:28]), len(data))
    _against_manifest(data)
    _cut(data)
    return True


def _is_plan(data: bytes) -> bool:
    return len(data) >= 28 and data[:4] in _MAGIC and struct.unpack_from("<Q", data, 16)[0] == len(data)


def _cut(data: bytes) -> None:
    """With any other size than its own it is refused."""
    for size in {len(data) + 1, 0} - {len(data)}:
        try:
            parse_plan_header(memoryview(data), size, "x")
        except PlanInvalid:
            continue
        assert struct.unpack_from("<Q", data, 16)[0] == size, "the size does not count"


def _against_manifest(data: bytes) -> None:
    version = ".".join(map(str, data[24:28]))
    for runtime in _MAGIC.values():
        for built_with in (version, version.rpartition(".")[0], f"{data[24] + 1}.0"):
            engine = Engine(path="p", size=1, sha256="", plan_size=1, runtime=runtime, built_with=built_with)  # type: ignore[arg-type]
            fits = runtime == _MAGIC[data[:4]] and version.startswith(built_with)
            try:
                check_against_manifest(read_plan_header(_PATH), engine, "p")
            except PlanInvalid:
                assert not fits, built_with
            else:
                assert fits, built_with
