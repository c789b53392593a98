"""Look up, publish and set aside engines. The look-up is the path that every launch of a host app takes."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator

from refit_agent.cache.disk import NOT_ITS_FAULT, write_error
from refit_agent.cache.entry import ENTRY_NAME, Entry, decode_entry, encode_entry, files_fault
from refit_agent.digest import fsync_folder
from refit_agent.errors import CacheInsecure, CacheUnwritable

if sys.platform == "win32":
    from refit_agent.cache import _windows as _platform
else:
    from refit_agent.cache import _posix as _platform

TEMPORARY = "tmp"
QUARANTINE = "quarantine"
#: Below the cache's own folder.
FOLDERS = ("engines", "locks", TEMPORARY, QUARANTINE)
_MAX_ENTRY_BYTES = 1 << 20
_LOOKUP_TRIES = 5
#: What opening says of a name under which there is no file: nothing, or a folder, a link, a socket.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EOPNOTSUPP)
#: What renaming a folder says of a name that is taken: by another folder, or by what is none.
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES, errno.ENOTDIR)
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Engines made by refit-agent; safe to delete.\n"


class Lease:
    """Keeps one entry from eviction until `close`, or until its process ends. Thread-safe to close."""

    __slots__ = ("_fds",)

    def __init__(self, fd: int) -> None:
        self._fds = [fd]

    def close(self) -> None:
        """End the lease; more than once does no harm."""
        # Taken out in one step: two threads that close at once must not close one number twice, which
        # may be another file's by then.
        with contextlib.suppress(IndexError):
            os.close(self._fds.pop())

    def __del__(self) -> None:
        self.close()


class Store:
    """The engine cache below one folder. Holds nothing open; safe to share between threads and processes."""

    __slots__ = ("_engines", "root")

    def __init__(self, root: str) -> None:
        self.root = root
        self._engines = root + "/engines/"

    # ------------------------------------------------------------ looking up

    def lookup(self, key: str, *, touch: bool = True) -> tuple[Entry, str, Lease] | str | None:
        """The published entry of ``key``, its folder and a lease on it; None if there is none.

        A text instead says what is damaged about an entry that is there. Costs a handful of system
        calls: the files are compared by size and time, not by content (see `verify`). ``touch`` notes that
        the engine is used now.

        Raises:
            CacheInsecure: the cache folder is not the user's alone.
            CacheUnwritable: this process cannot open any more files.
        """
        self.check_owner()
        folder = self._engines + key
        name = f"{folder}/{ENTRY_NAME}"
        missing = ""
        withheld = False
        for _ in range(_LOOKUP_TRIES):
            try:
                fd = os.open(name, _platform.OPEN_FLAGS)
                missing = ""
            except BlockingIOError:
                # A file server has the file for itself, and gives it back when somebody asks.
                withheld = True
                time.sleep(0.01)
                continue
            except FileNotFoundError:
                if not os.path.lexists(folder):
                    return None
                # Perhaps the entry was published between the two: then the next try finds it.
                missing = f"{ENTRY_NAME} is missing"
                continue
            except OSError as error:
                if error.errno in NOT_ITS_FAULT:
                    raise CacheUnwritable(path=name, detail=error.strerror) from error
                return f"{ENTRY_NAME} cannot be opened: {error.strerror}"
            lease = Lease(fd)
            if not self._claim_shared(fd):
                lease.close()
                continue
            # An eviction, or one followed by a new publication, may have come between open and lock:
            # then this lease is on a folder that no longer has the name.
            if not _same_file(fd, name):
                lease.close()
                continue
            try:
                entry = _read(fd, key)
                fault = entry if isinstance(entry, str) else files_fault(entry, folder)
            except CacheUnwritable:
                lease.close()
                raise
            if isinstance(entry, str) or fault:
                lease.close()
                return fault
            if touch:
                with contextlib.suppress(OSError):  # a cache that cannot be written still serves
                    os.utime(name)
            return entry, folder, lease
        if withheld:
            raise CacheUnwritable(path=name, detail="another machine has it open for itself")
        return missing or None

    def _claim_shared(self, fd: int) -> bool:
        # An eviction holds the lock only for one rename, so a short wait is long enough.
        for _ in range(200):
            if _platform.lock_shared(fd):
                return True
            time.sleep(0.001)
        return False

    def check_owner(self) -> None:
        """Raise CacheInsecure if another user could have put engines there; a missing folder is fine."""
        fault = ""
        try:
            status = os.lstat(self.root)
            if stat.S_ISLNK(status.st_mode):
                # Another user's link may lead to any folder of this user's: what lies in its "tmp" would be swept.
                fault = _platform.link_fault(status)
                status = os.stat(self.root)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CacheUnwritable(path=self.root, detail=error.strerror) from error
        if not stat.S_ISDIR(status.st_mode):
            raise CacheUnwritable(path=self.root, detail="it is not a folder")
        fault = fault or _platform.owner_fault(status)
        if fault:
            raise CacheInsecure(path=self.root, detail=fault)

    def list_keys(self) -> Iterator[str]:
        """Keys of all entries, damaged ones too, in no order."""
        try:
            names = os.listdir(self._engines)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CacheUnwritable(path=self._engines, detail=error.strerror) from error
        yield from names

    def folder(self, key: str) -> str:
        """Where the entry of ``key`` is, or would be."""
        return self._engines + key

    # ------------------------------------------------------------ publishing

    def prepare(self) -> None:
        """Create the folders that writing needs, for the user alone.

        Raises:
            CacheInsecure, CacheUnwritable.
        """
        try:
            self.root.encode()
        except UnicodeEncodeError as error:
            raise CacheUnwritable(path=ascii(self.root), detail="its path is not UTF-8") from error
        try:
            os.makedirs(self.root, mode=0o700, exist_ok=True)
            self.check_owner()
            for name in FOLDERS:
                folder = f"{self.root}/{name}"
                os.makedirs(folder, mode=0o700, exist_ok=True)
                # Known now, and not when an engine has been made that cannot be put there.
                if not os.access(folder, os.W_OK | os.X_OK):
                    probe = f"{folder}/{_unique()}"
                    os.mkdir(probe)  # the system says why not
                    os.rmdir(probe)
            tag = f"{self.root}/CACHEDIR.TAG"
            if not os.path.exists(tag):
                with open(tag, "wb") as file:
                    file.write(_TAG)
        except OSError as error:
            raise write_error(error, self.root) from error

    def stage(self, key: str) -> str:
        """A new empty folder to make the engine of ``key`` in. The caller holds the lock of ``key``."""
        path = f"{self.root}/{TEMPORARY}/{key}.{os.getpid()}-{_unique()}"
        try:
            os.mkdir(path, mode=0o700)
        except OSError as error:
            raise write_error(error, path) from error
        return path

    def publish(self, staging: str, entry: Entry) -> None:
        """Make a finished staging folder the entry of its key: all of it, or nothing.

        The files must be on the disk already (the worker has called fsync on them). The caller holds
        the lock of the key.

        Raises:
            DiskFull, CacheUnwritable.
        """
        target = self._engines + entry.key
        try:
            with open(f"{staging}/{ENTRY_NAME}", "wb") as file:
                file.write(encode_entry(entry))
                file.flush()
                os.fsync(file.fileno())
            fsync_folder(staging)
            try:
                os.rename(staging, target)
            except OSError as error:
                if error.errno not in _TAKEN or not os.path.lexists(target):
                    raise
                # Something is there that the look-up did not accept.
                self.quarantine(entry.key)
                os.rename(staging, target)
            fsync_folder(self._engines)
        except OSError as error:
            raise write_error(error, target) from error

    def quarantine(self, key: str) -> str:
        """Set a damaged entry aside, where no look-up finds it; gives its new place."""
        place = f"{self.root}/{QUARANTINE}/{key}.{_unique()}"
        try:
            _move(self._engines + key, place)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise write_error(error, self._engines + key) from error
        return place

    def discard(self, path: str) -> None:
        """Delete a staging or quarantine folder, or a file there; what cannot be deleted now is left for the next prune."""
        try:
            os.unlink(path)  # first: the other opens what it is given, and would wait for the writer of a pipe
        except FileNotFoundError:
            return
        except OSError:
            import shutil  # not needed for a hit, and slow to import

            with contextlib.suppress(OSError):  # what it is told to ignore is not all that it raises
                shutil.rmtree(path, ignore_errors=True)

    # ------------------------------------------------------------ removing

    def remove(self, key: str) -> bool:
        """Remove one entry unless it is leased; False if it is. A missing one counts as removed.

        The caller holds the lock of the key, so that no other engine can take its place meanwhile.
        """
        folder = self._engines + key
        name = f"{folder}/{ENTRY_NAME}"
        try:
            fd = _open_to_claim(name)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise write_error(error, folder) from error
            fd = -1  # nobody can have a lease on it
        grave = f"{self.root}/{TEMPORARY}/{key}.{os.getpid()}-{_unique()}"
        try:
            if fd >= 0 and not _platform.lock_exclusive(fd):
                return False
            if os.name == "nt" and fd >= 0:
                os.close(fd)  # our own handle would keep the folder from being renamed
                fd = -1
            _move(folder, grave)
        except FileNotFoundError:
            return True
        except PermissionError as error:
            if os.name == "nt":
                return False  # somebody has a file of it open
            raise write_error(error, folder) from error
        except OSError as error:
            raise write_error(error, folder) from error
        finally:
            if fd >= 0:
                os.close(fd)
        self.discard(grave)
        return True


def inspect_entry(folder: str, key: str) -> Entry | str:
    """What ``entry.json`` in ``folder`` says, without a lease; in words why it is not the entry of ``key``."""
    try:
        fd = os.open(f"{folder}/{ENTRY_NAME}", _platform.OPEN_FLAGS)
    except OSError as error:
        return f"{ENTRY_NAME}: {error.strerror}"
    try:
        return _read(fd, key)
    finally:
        os.close(fd)


def _read(fd: int, key: str) -> Entry | str:
    try:
        data = os.read(fd, min(os.fstat(fd).st_size + 1, _MAX_ENTRY_BYTES))
    except OSError as error:  # a folder has its name, or the disk cannot read it any more
        if error.errno in NOT_ITS_FAULT:
            raise CacheUnwritable(path=ENTRY_NAME, detail=error.strerror) from error
        return f"{ENTRY_NAME} cannot be read: {error.strerror}"
    return decode_entry(data, key)


def _open_to_claim(name: str) -> int:
    try:
        return os.open(name, _platform.CLAIM_FLAGS)
    except PermissionError:
        # Somebody took the right to write from everything below the cache: what is evicted needs none. A link would
        # lead the change of mode to what is not ours.
        folder = os.path.dirname(name)
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise
        os.chmod(folder, 0o700)
        if not stat.S_ISREG(os.lstat(name).st_mode):
            raise
        os.chmod(name, 0o600)
        return os.open(name, _platform.CLAIM_FLAGS)


def _move(folder: str, place: str) -> None:
    try:
        os.rename(folder, place)
    except PermissionError:
        mode = os.lstat(folder).st_mode
        if not stat.S_ISDIR(mode):
            raise
        os.chmod(folder, 0o700)  # a folder that cannot be written cannot be moved to another one either
        try:
            os.rename(folder, place)
        except OSError:
            os.chmod(folder, stat.S_IMODE(mode))
            raise


def _same_file(fd: int, name: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name))
    except OSError:
        return False


def _unique() -> str:
    return os.urandom(4).hex()
