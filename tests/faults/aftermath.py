"""What must hold after a fault, whatever it was: each check gives what is wrong, in words, and an empty list if nothing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from refit_agent.cache.entry import ENTRY_NAME
from refit_agent.cache.store import Store
from refit_agent.cache.upkeep import list_entries

from .layer import Call
from .scenes import Scene, size_of

#: File name -> SHA-256, of one entry without its entry.json, which holds the time.
Content = dict[str, str]
#: The folder of remembered failures, once there was one; the failures themselves have to go. And which of the old
#: entries goes may be otherwise if one could not be read: that the quota is kept, and that each is whole, is checked.
_MAY_STAY = re.compile(r"state/failures|cache/engines/[ABC](/.*)?")
_RANDOM = re.compile(r"\.(\d+-)?[0-9a-f]{8}\b")


def content_of(store: Store, key: str) -> Content:
    """What the files of an entry hold now; {} if there is none."""
    folder = Path(store.folder(key))
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in found if f.name != ENTRY_NAME}


def entry_faults(scene: Scene, store: Store, golden: Mapping[str, Content]) -> Iterator[str]:
    """Every entry that is visible is whole: a look-up accepts it, and its content is what a sound run makes."""
    known = {key: name for name, key in scene.keys.items()}
    for key in store.list_keys():
        name = known.get(key)
        if name is None:
            yield f"there is an entry {key} that nobody asked for"
            continue
        found = store.lookup(key, touch=False)
        if found is None:  # gone since the listing
            continue
        if isinstance(found, str):
            if name not in scene.damaged:
                yield f"entry {name} is visible and not whole: {found}"
            continue
        found[2].close()
        listed = {f.name: f.sha256 for f in found[0].files}
        content = content_of(store, key)
        if content != listed:
            yield f"entry {name} is accepted by a look-up, and its files are not what it lists"
        if name in golden and content != golden[name]:
            yield f"entry {name} is accepted by a look-up, and is not what a run without faults makes"


def innocent_faults(scene: Scene, store: Store, golden: Mapping[str, Content]) -> Iterator[str]:
    """Entries that had nothing to do with it are there, whole."""
    for name in scene.innocent:
        if content_of(store, scene.keys[name]) != golden[name]:
            yield f"the innocent entry {name} is lost or not as it was"


def quota_faults(scene: Scene, store: Store, *, at_least: int = 0) -> Iterator[str]:
    """The entries take no more than the quota, or than ``at_least`` where they did before."""
    size = size_of(store)
    if scene.quota is not None and size > max(scene.quota, at_least):
        yield f"the entries take {size} bytes, the quota is {scene.quota}"


def order_faults(calls: Sequence[Call]) -> Iterator[str]:
    """No power cut shows a name without its bytes: they are on the disk before the entry gets its place, and the place
    before the call returns. No kill can show that: what a killed process wrote is not lost."""
    waiting: dict[str, str] = {}
    published = False
    for call in calls:
        old, _, new = call.path.partition(" > ")
        if call.call in ("create", "write") and call.path.endswith(".log"):
            continue
        if call.call in ("create", "write", "truncate"):
            waiting[call.path] = "its bytes"
            if call.call == "create":
                waiting[os.path.dirname(call.path)] = "the names in it"
        elif call.call == "fsync":
            waiting.pop(call.path, None)
        elif call.call == "rename":
            moved = {path: what for path, what in waiting.items() if path == old or path.startswith(f"{old}/")}
            if "/engines/" in new and "/tmp/" in old:
                published = True
                yield from (f"published before it was on the disk: {path} ({what})" for path, what in moved.items())
            for path, what in moved.items():
                del waiting[path]
                waiting[new + path[len(old) :]] = what
            waiting[os.path.dirname(new)] = "the names in it"
    if not published:
        yield "nothing was published"
    if "home/cache/engines" in waiting:
        yield "the entry's name was not brought to the disk"


def listing(home: Path, keys: Mapping[str, str]) -> set[str]:
    """Every file and folder below ``home``, with names for keys and for what is random."""
    found: set[str] = set()
    for folder, folders, files in os.walk(home):
        for name in [*folders, *files]:
            text = str(Path(folder, name).relative_to(home))
            for letter, key in keys.items():
                text = text.replace(key, letter)
            found.add(_RANDOM.sub(".*", text))
    return {name for name in found if not _MAY_STAY.fullmatch(name)}


def visible_fault(store: Store, key: str) -> str:
    """Why what is visible of a key right now is not whole, "" if it is or nothing is visible. For use while others work."""
    found = store.lookup(key, touch=False)
    if isinstance(found, tuple):
        entry, folder, lease = found
        try:
            content = content_of(store, key)
            wrong = [f.name for f in entry.files if content.get(f.name) != f.sha256]
        finally:
            lease.close()
        # Removed meanwhile, lease or not, only by somebody who set the whole cache aside.
        return f"{wrong[0]} is not what {folder} lists" if wrong and Path(folder).exists() else ""
    return found or ""


def damage_in(store: Store) -> list[str]:
    """Entries that the list of the cache calls damaged."""
    return [f"{c.key}: {c.fault}" for c in list_entries(store) if c.fault]
