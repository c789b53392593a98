"""Removes what refit-agent has written for this user, by its names: nothing else, wherever its folders may lie.

The roots may be any folder that somebody named in a setting, their own home too. So only names that this program
gives are removed, never what a link points to, and a folder only when it is empty then and something of ours was in it,
or its name or its tag says that it is ours.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator

from refit_agent.bundle import Bundle
from refit_agent.cache.locks import remove_lock_file, try_key_lock
from refit_agent.cache.store import QUARANTINE, TEMPORARY, Store
from refit_agent.cache.upkeep import PARTIAL
from refit_agent.cli.cache_document import is_leased
from refit_agent.cli.service_stop import is_lock_of_service, is_of_service
from refit_agent.errors import CacheError, RefitAgentError
from refit_agent.paths import APP
from refit_agent.service_socket import VARIABLE, is_loopback

_TAG = "CACHEDIR.TAG"
_KEY = re.compile(r"[0-9a-f]{64}")
#: A key with what makes the name its own: ".lock", ".1234-5678abcd".
_OF_KEY = re.compile(r"([0-9a-f]{64})(\.[0-9a-z-]+)?")
_STATE_FILES = re.compile(r"(machine|bundles|warm|checked)\.json(\.damaged|\.[0-9a-z_]{8}(\.tmp)?)?")
#: A note, and what a writer that was killed leaves of one: "KEY.json.1234abcd.tmp", of older versions "KEY.1234abcd.tmp".
_FAILURES = re.compile(r"[0-9a-f]{64}(\.json|(\.json)?\.[0-9a-f]{8}\.tmp)")
_LOGS = re.compile(r"service\.log(\.[0-9]+)?")
#: What removing an empty folder says where the folder above is somebody else's, or where something is mounted on it.
_NOT_THIS_USER_S = (errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS)


class Removal:
    """Removes, and keeps account: ``removed`` are paths, ``left`` what should have gone with the reason, ``foreign``
    folders of ours with what in them is not, ``freed`` bytes."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.left: list[tuple[str, str]] = []
        self.foreign: list[tuple[str, str]] = []
        self.freed = 0

    # ------------------------------------------------------------ the service's place

    def runtime(self, place: str) -> None:
        """The service's socket or file at ``place`` ("" for none), its lock, and their folder if it is ours by name.
        The service must have ended. What else has that name is somebody's file, named by mistake."""
        if not place:
            return
        if not is_of_service(place):
            self.foreign.append((place, "it is no socket or file of a service"))
            return
        self._unlink(place)
        lock = f"{place}.lock"
        if is_lock_of_service(lock):
            self._unlink(lock)
        folder, name = os.path.split(place)
        if is_loopback(place):
            self._files(folder, re.compile(re.escape(name) + r"\.[0-9a-f]{8}\.tmp"))
        if os.environ.get(VARIABLE) is None:  # else somebody chose the folder
            self._folder(folder)

    # ------------------------------------------------------------ state

    def state(self, root: str) -> None:
        """What was learned and noted: machine, registered bundles, failures, logs, the demo's bundle."""
        if not self._is_folder(root):
            return
        self._files(root, _STATE_FILES)
        ours = self._is_ours(root)
        for name, pattern in (("failures", _FAILURES), ("logs", _LOGS)):
            if self._is_folder(f"{root}/{name}"):
                self._files(f"{root}/{name}", pattern)
                self._folder(f"{root}/{name}", ours=ours)
        self._demo(f"{root}/demo", ours=ours)
        self._folder(root)

    def _demo(self, folder: str, *, ours: bool) -> None:
        bundle = f"{folder}/bundle"
        if not self._is_folder(folder):
            return
        with contextlib.suppress(RefitAgentError, ImportError):
            from refit_agent.authoring.demo_bundle import APP_ID

            if self._is_folder(bundle) and Bundle.open(bundle, draft=True).manifest.app.id == APP_ID:
                self._tree(bundle)
        self._folder(folder, ours=ours)

    # ------------------------------------------------------------ the cache

    def busy_keys(self, store: Store) -> set[str]:
        """The keys of the cache's engines that a process uses, or makes."""
        if not self._is_cache(store.root):
            return set()
        busy = {key for key in self._keys(store) if is_leased(store, key)}
        for name in _names(f"{store.root}/locks"):
            key = name.removesuffix(".lock")
            if _KEY.fullmatch(key):
                with try_key_lock(store, key) as ours:
                    busy |= set() if ours else {key}
        return busy

    def cache(self, store: Store, *, force: bool) -> None:
        """The engines, unfinished work and leftovers; ``force`` takes those too that a process uses, from under it.

        Raises:
            CacheInsecure, CacheUnwritable.
        """
        if not self._is_folder(store.root):
            return
        if not self._is_cache(store.root):
            if _names(store.root):
                self.foreign.append((store.root, f"it has no {_TAG} of refit-agent"))
            else:
                self._root(store.root, ours=False)
            return
        store.prepare()  # the locks' folder may have been deleted
        for key in self._keys(store):
            self._engine(store, key, force=force)
        for folder in (TEMPORARY, PARTIAL, QUARANTINE):
            self._leftovers(store, folder, force=force)
        for name in _names(f"{store.root}/locks"):
            key = name.removesuffix(".lock")
            if _KEY.fullmatch(key):
                with try_key_lock(store, key) as ours:
                    if ours or force:
                        remove_lock_file(store, key)
        for folder in ("engines", "locks", TEMPORARY, PARTIAL, QUARANTINE):
            self._folder(f"{store.root}/{folder}", ours=True)
        if _names(store.root) == [_TAG]:
            self._files(store.root, re.compile(re.escape(_TAG)))
            self._root(store.root, ours=True)
        else:  # the tag stays: it says whose the rest is
            self._say_foreign(store.root, {_TAG})

    def _root(self, path: str, *, ours: bool) -> None:
        """Remove the cache's folder, which is empty. Where the administrator made it for this user, or it is a disk of
        its own, it stays, and nothing is left to do."""
        try:
            if ours or self._is_ours(path):
                os.rmdir(path)
                self.removed.append(path)
        except OSError as error:
            if error.errno in _NOT_THIS_USER_S:
                self.foreign.append((path, "empty; it is not this user's to remove"))
            else:
                self.left.append((path, error.strerror or str(error)))

    def _engine(self, store: Store, key: str, *, force: bool) -> None:
        folder = store.folder(key)
        size = 0 if os.path.islink(folder) else _size(folder)
        try:
            with try_key_lock(store, key) as ours:
                gone = ours and store.remove(key)
                if not gone and force:
                    store.discard(store.quarantine(key))
                    gone = True
        except CacheError as error:
            self.left.append((folder, str(error)))
            return
        if gone:
            self.removed.append(folder)
            self.freed += size
        else:
            self.left.append((folder, "it is in use"))

    def _leftovers(self, store: Store, name: str, *, force: bool) -> None:
        folder = f"{store.root}/{name}"
        if not self._is_folder(folder):
            return
        for found in _names(folder):
            match = _OF_KEY.fullmatch(found)
            if match is None:
                continue
            with try_key_lock(store, match[1]) as ours:
                if ours or force:
                    self._tree(f"{folder}/{found}")
                else:
                    self.left.append((f"{folder}/{found}", "somebody works on it"))

    def _keys(self, store: Store) -> Iterator[str]:
        if self._is_folder(f"{store.root}/engines"):
            yield from sorted(key for key in store.list_keys() if _KEY.fullmatch(key))

    def _is_cache(self, root: str) -> bool:
        """Whether refit-agent has made the folder a cache, and not only its name was given by mistake."""
        try:
            with open(f"{root}/{_TAG}", "rb") as file:
                return b"refit-agent" in file.read(4096)
        except OSError:
            return False

    # ------------------------------------------------------------ one by one

    def file(self, path: str) -> None:
        """One file of ours and, if it is empty then, its folder."""
        folder, name = os.path.split(path)
        self._files(folder, re.compile(re.escape(name)))
        if _names(folder) == []:
            self._folder(folder)

    def _files(self, folder: str, pattern: re.Pattern[str]) -> None:
        for name in _names(folder):
            path = os.path.join(folder, name)
            if pattern.fullmatch(name) and not os.path.isdir(path):
                self._unlink(path)

    def _unlink(self, path: str) -> None:
        try:
            size = os.lstat(path).st_size
            os.unlink(path)  # of a link it takes the link alone
        except FileNotFoundError:
            return
        except OSError as error:
            self.left.append((path, error.strerror or str(error)))
            return
        self.removed.append(path)
        self.freed += size

    def _tree(self, path: str) -> None:
        if not os.path.isdir(path) or os.path.islink(path):
            self._unlink(path)
            return
        size = _size(path)
        shutil.rmtree(path, ignore_errors=True)
        if os.path.lexists(path):
            self.left.append((path, "not all of it could be removed"))
        else:
            self.removed.append(path)
            self.freed += size

    def _is_ours(self, folder: str) -> bool:
        """Whether the folder has our name, or something of ours was in it."""
        return os.path.basename(folder) == APP or any(path.startswith(folder + os.sep) for path in self.removed)

    def _folder(self, path: str, *, ours: bool = False) -> None:
        """Remove the folder if it is ours, known to the caller or as `_is_ours` says, and empty; what is not ours in it
        is named."""
        if os.path.islink(path) or not os.path.isdir(path) or not (ours or self._is_ours(path)):
            return
        try:
            os.rmdir(path)
        except OSError as error:
            if _names(path):
                self._say_foreign(path, set())
            else:
                self.left.append((path, error.strerror or str(error)))
            return
        self.removed.append(path)

    def _say_foreign(self, folder: str, ours: set[str]) -> None:
        names = [name for name in _names(folder) if name not in ours and not self._told(os.path.join(folder, name))]
        if names:
            self.foreign.append((folder, f"it holds what is not refit-agent's: {', '.join(names[:5])}"))

    def _told(self, path: str) -> bool:
        """Whether it was said already why ``path`` stays, or something in it."""
        told = [place for place, _ in (*self.left, *self.foreign)]
        return any(place == path or place.startswith(path + os.sep) for place in told)

    def _is_folder(self, path: str) -> bool:
        """Whether ``path`` is a folder itself. What is behind a link may be anybody's, and is left."""
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return False
        if stat.S_ISLNK(mode):
            reason = "it is a link, and what it points to is not looked into"
            if (path, reason) not in self.left:
                self.left.append((path, reason))
            return False
        return stat.S_ISDIR(mode)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _size(path: str) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{folder}/{name}").st_size
    return total
