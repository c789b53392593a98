"""The limits that docs/security.md gives are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from refit_agent import settings, settings_file, signature
from refit_agent.cache import store, upkeep
from refit_agent.manifest import MAX_MANIFEST_BYTES
from refit_agent.refit import launch, unpack, worker_process
from refit_service import transport
from refit_service.page.door import _PageKeeper

PAGE = (Path(__file__).parents[2] / "docs/security.md").read_text()
KIB, MIB = 1 << 10, 1 << 20


def _limits(of: str) -> str:
    found = re.search(rf"^\| {re.escape(of)}[^|]*\| ([^|]+) \|$", PAGE, re.M)
    assert found, of
    return found[1]


def test_of_files() -> None:
    small = (signature._MOST_FILE_BYTES // KIB, settings_file._MOST_BYTES // KIB, store._MAX_ENTRY_BYTES // MIB)
    said = f"{MAX_MANIFEST_BYTES // MIB} MiB, {small[0]} KiB, {small[1]} KiB, {small[2]} MiB"
    assert _limits("a manifest, a signature file") == said


def test_of_work() -> None:
    said = _limits("an engine in the making")
    assert f"{settings.DEFAULT_DEADLINE_S:.0f} s without one" in said
    assert f"a log of {worker_process.MAX_LOG_BYTES // MIB} MiB" in said
    assert f"one event of {launch._MAX_EVENT_BYTES // MIB} MiB" in said
    assert f"zstd windows beyond {unpack._MAX_ZSTD_WINDOW // MIB} MiB" in PAGE
    assert f"xz beyond {unpack._MAX_XZ_MEMORY // MIB} MiB" in PAGE


def test_of_the_disk() -> None:
    assert f"{upkeep.DISK_MARGIN_BYTES // MIB} MiB of the disk stay free" in _limits("the cache")
    assert f"never the last {upkeep.DISK_MARGIN_BYTES // MIB} MiB" in PAGE


def test_of_the_service() -> None:
    assert _limits("the service") == (
        f"{transport.MOST_CONNECTIONS} connections, {_PageKeeper.most} of the page; {transport.HEAD_S:.0f} s for a head; "
        f"{transport.UNREAD_S:.0f} s for a reader who does not read"
    )
