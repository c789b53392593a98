"""`refit-agent cache list|verify|prune|clear`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from refit_agent.cache.store import Store

from .command import Cli


@pytest.fixture
def key(cli: Cli, bundle: Path) -> str:
    """An engine in the cache."""
    found: str = cli("provision", bundle, "--json").document["engines"][0]["key"]
    return found


def test_an_empty_cache(cli: Cli) -> None:
    """Every command works before there is a cache."""
    assert cli("cache", "list", "--json").document["entries"] == []
    assert cli("cache", "list").out.startswith("0 engines, 0 B of ")
    assert cli("cache", "verify", "--json").document == {"cache": str(cli.cache), "ok": True, "entries": []}
    assert cli("cache", "prune", "--json").document["removed"] == []
    assert cli("cache", "clear", "--json").document["removed"] == []


def test_list(cli: Cli, key: str) -> None:
    """What it is, how large, when used, and whether somebody uses it now."""
    (entry,) = cli("cache", "list", "--json").document["entries"]
    assert (entry["key"], entry["model"], entry["target"], entry["leased"]) == (key, "classifier", "cpu", False)
    assert entry["bytes"] > 1000 and entry["fault"] == "" and Path(entry["path"]).is_file()
    head, row, total = cli("cache", "list").out.splitlines()
    assert head.split()[:3] == ["key", "app", "model"] and row.startswith(key[:12])
    assert total.startswith("1 engine, ")


def test_a_leased_engine_stays(cli: Cli, key: str) -> None:
    """An engine in use is shown so, and neither prune nor clear takes it."""
    found = Store(str(cli.cache)).lookup(key)
    assert isinstance(found, tuple)
    try:
        assert cli("cache", "list", "--json").document["entries"][0]["leased"] is True
        assert cli("cache", "prune", "--max-size", "0", "--json").document["removed"] == []
        cleared = cli("cache", "clear", "--json").document
        assert (cleared["removed"], cleared["kept"]) == ([], [key])
        assert f"in use, stays: {key[:12]}" in cli("cache", "clear").out
    finally:
        found[2].close()
    assert cli("cache", "prune", "--max-size", "0", "--json").document["removed"] == [key]


def test_prune_and_clear(cli: Cli, key: str) -> None:
    """Prune within the limit removes nothing; clear removes all and says how much that was."""
    kept = cli("cache", "prune", "--max-size", "10G")
    assert kept.code == 0 and kept.out.startswith("removed 0 engines")
    cleared = cli("cache", "clear", "--json").document
    assert cleared["removed"] == [key] and cleared["freed_bytes"] > 1000 and cleared["bytes"] == 0
    assert list((cli.cache / "engines").iterdir()) == []


def test_verify_sets_damaged_engines_aside(cli: Cli, key: str) -> None:
    """Also damage that size and time do not show."""
    sound = cli("cache", "verify")
    assert sound.code == 0 and "1 engine: all sound" in sound.out
    weights = cli.cache / "engines" / key / "weights.bin"
    before = weights.stat()
    with open(weights, "r+b") as file:
        file.write(b"\x01\x02\x03\x04")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    ran = cli("cache", "verify", "--json")
    assert ran.code == 7
    (entry,) = ran.document["entries"]
    assert entry["ok"] is False and "weights.bin" in entry["fault"] and Path(entry["set_aside"]).is_dir()
    assert list((cli.cache / "engines").iterdir()) == []


def test_list_shows_a_fault(cli: Cli, key: str) -> None:
    """An entry that cannot be used has a column that says why."""
    (cli.cache / "engines" / key / "entry.json").write_text("{")
    head, row, _ = cli("cache", "list").out.splitlines()
    assert head.split()[-1] == "fault" and "entry.json cannot be read" in row
    assert cli("cache", "verify").out.startswith(f"FAULT {key[:12]}")


def test_wrong_sizes_and_settings(cli: Cli) -> None:
    """A size that is none is a setting error, whether given or in the environment."""
    assert cli("cache", "prune", "--max-size", "lots").code == 2
    ran = cli("cache", "list", "--json", REFIT_AGENT_CACHE_QUOTA="lots")
    assert ran.code == 2 and ran.document["error"]["code"] == "setting-invalid"
    assert cli("cache").code == 2
    cli.home.write_text("a file where the home should be")
    assert cli("cache", "list").code == 7


def test_on_a_disk_that_became_read_only(cli: Cli, bundle: Path, mounted: Callable[[str], Path]) -> None:
    """Nothing can be removed, and nobody uses it: that is no success, and ``doctor`` sees it too."""
    place = mounted("size=1g,mode=700")
    cli.env["REFIT_AGENT_CACHE_DIR"] = str(place)
    assert cli("provision", bundle).code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    for command in (["clear"], ["clear", "--json"], ["prune", "--max-size", "1"]):
        ran = cli("cache", *command)
        assert ran.code == 7 and "cache-unwritable" in ran.out + ran.err and "in use" not in ran.out + ran.err
    assert cli("cache", "list").code == cli("cache", "verify").code == 0
    assert cli("path", bundle, "classifier").code == 0, "a hit needs no writing"
    checks = {check["name"]: check for check in cli("doctor", "--json").document["checks"]}
    assert checks["cache folder"]["status"] == "fail" and "cannot be written" in checks["cache folder"]["summary"]
