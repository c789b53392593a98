"""`refit-agent cache list|verify|prune|clear`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from refit_agent import paths
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import list_entries
from refit_agent.cli import output, stop
from refit_agent.cli.cache_document import entry_document, quota, verdict_document
from refit_agent.cli.ensure import lazy_view
from refit_agent.cli.group import json_option
from refit_agent.errors import CacheError, EntryDamaged
from refit_agent.progress import Progress
from refit_agent.settings import parse_size


@click.group(short_help="List, check and empty the cache of finished engines.")
def cache() -> None:
    """The cache of finished engines. It holds nothing that cannot be made again.

    \b
    Example:
      refit-agent cache list
    """


def _store() -> Store:
    store = Store(paths.home().cache)
    store.check_owner()
    return store


@cache.command("list", short_help="List the engines, least recently used first.")
@json_option
def list_command(as_json: bool) -> int:
    """List every engine in the cache, least recently used first: the order in which they are evicted.

    \b
    Example:
      refit-agent cache list --json
    """
    store = _store()
    entries = list_entries(store)
    total, limit = sum(c.size for c in entries), quota(store)
    documents = [entry_document(store, cached) for cached in entries]
    if as_json:
        output.emit_json({"cache": store.root, "bytes": total, "quota_bytes": limit, "entries": documents})
        return 0
    if documents:
        from refit_agent.console import print_table

        # Columns that say nothing are left out: the table has to fit a terminal.
        optional = [name for name in ("profile", "fault") if any(d.get(name) for d in documents)]
        columns = ["key", "app", "model", "target", "runtime", "size>", "last used", "in use", *optional]
        print_table(columns, [_row(document, optional) for document in documents])
    output.emit(
        f"{output.count_text(len(entries), 'engine')}, {output.size_text(total)} of {output.size_text(limit)}, in {store.root}"
    )
    return 0


def _row(document: dict[str, object], optional: Sequence[str]) -> tuple[str, ...]:
    def cell(name: str) -> str:
        return str(document.get(name) or "-")

    leased = document["leased"]
    return (
        str(document["key"])[:12],
        cell("app"),
        cell("model"),
        cell("target"),
        f"{cell('runtime')} {document.get('runtime_version', '')}".rstrip(),
        output.size_text(int(str(document["bytes"]))),
        output.age_text(time.time() - float(str(document["last_used"]))),
        "?" if leased is None else "yes" if leased else "no",
        *(cell(name) for name in optional),
    )


@cache.command("verify", short_help="Read every engine and set damaged ones aside.")
@json_option
def verify_command(as_json: bool) -> int:
    """Read every engine in the cache whole and compare it with what was published. A damaged one is set aside,
    so that the next request makes it anew; the exit code is then 7.

    \b
    Example:
      refit-agent cache verify
    """
    from refit_agent.cache.verify import verify

    store = _store()
    total = sum(c.size for c in list_entries(store))
    done = 0
    with lazy_view() as view:

        def on_bytes(count: int) -> None:
            nonlocal done
            stop.check()
            done += count
            fraction = min(1.0, done / total) if total else 1.0
            view.show("cache", Progress(phase="hash", text="hashing", fraction=fraction, done=done, total=total))

        verdicts = verify(store, on_bytes=on_bytes)
    faults = [v for v in verdicts if v.fault]
    unread = [v for v in verdicts if v.error is not None]
    sound = not faults and not unread
    if as_json:
        output.emit_json({"cache": store.root, "ok": sound, "entries": [verdict_document(v) for v in verdicts]})
    else:
        for verdict in verdicts:
            told = f"FAULT {verdict.key[:12]} {verdict.fault}" if verdict.fault else f"ok    {verdict.key[:12]}"
            output.emit(told if verdict.error is None else f"?     {verdict.key[:12]} {verdict.error}")
        left = [v for v in faults if not v.set_aside]
        output.emit(
            f"{output.count_text(len(verdicts), 'engine')}: "
            + ("all sound" if sound else f"{len(faults)} damaged")
            + (f", {len(faults) - len(left)} set aside" if faults else "")
            + (f", {len(unread)} could not be read" if unread else "")
        )
        if left:
            output.emit("  hint: What is not set aside is still found: make the cache writable and try again.")
    return 0 if sound else EntryDamaged.exit_code


@cache.command("prune", short_help="Evict until the cache fits its limit; delete leftovers.")
@click.option("--max-size", metavar="SIZE", help="Such as 10G; without it, the limit that always holds.")
@json_option
def prune_command(max_size: str | None, as_json: bool) -> int:
    """Delete what killed processes left behind, then evict the least recently used engines until the cache
    fits. Engines in use stay.

    \b
    Example:
      refit-agent cache prune --max-size 10G
    """
    from refit_agent.cache.upkeep import prune

    store = _store()
    limit = quota(store) if max_size is None else parse_size(max_size, "--max-size")
    before = sum(c.size for c in list_entries(store))
    failed: list[CacheError] = []
    with stop.patiently():
        removed = prune(store, limit, failed)
    after = sum(c.size for c in list_entries(store))
    if after > limit and failed:
        raise failed[0]
    if as_json:
        output.emit_json({"cache": store.root, "removed": removed, "freed_bytes": before - after, "bytes": after, "quota_bytes": limit})  # fmt: skip
        return 0
    output.emit(f"removed {output.count_text(len(removed), 'engine')}, {output.size_text(before - after)}")
    output.emit(f"left: {output.size_text(after)} of {output.size_text(limit)}, in {store.root}")
    if after > limit:
        output.emit("  the rest is in use and stays")
    return 0


@cache.command("clear", short_help="Remove every engine that is not in use.")
@json_option
def clear_command(as_json: bool) -> int:
    """Remove every engine that no process is using. Each will be made again when it is asked for.

    \b
    Example:
      refit-agent cache clear
    """
    from refit_agent.cache.upkeep import clear

    store = _store()
    before = sum(c.size for c in list_entries(store))
    failed: list[CacheError] = []
    with stop.patiently():
        removed, kept = clear(store, failed)
    if failed:
        raise failed[0]
    after = sum(c.size for c in list_entries(store))
    if as_json:
        output.emit_json({"cache": store.root, "removed": removed, "kept": kept, "freed_bytes": before - after, "bytes": after})  # fmt: skip
        return 0
    output.emit(
        f"removed {output.count_text(len(removed), 'engine')}, {output.size_text(before - after)}, from {store.root}"
    )
    for key in kept:
        output.emit(f"  in use, stays: {key[:12]}")
    return 0
