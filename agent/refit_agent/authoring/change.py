"""One change to a bundle on disk: made whole or not at all, and never lost to another command's.

    bundle/
      bundle.json                   replaced last
      .refit-agent-staging-XXXX/    what a command is about to add, for as long as it lives
      .refit-agent.lock             held while names change, gone afterwards

The long work (copying, compressing, running a model) is done in the staging folder with nothing locked, so
that several engines can be added at once. Under the lock the manifest is read again and the change applied
to what it says by then. What a killed command left behind goes with the next change.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import msgspec
from filelock import FileLock, Timeout

from refit_agent.authoring.errors import BundleBusy, BundleUnwritable, FieldsUnknown
from refit_agent.authoring.places import Places, remove_file
from refit_agent.authoring.staging import Staging, remove_abandoned
from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.digest import fsync_folder
from refit_agent.manifest import Manifest, decode_manifest, unknown_fields
from refit_agent.signature import SIGNATURE_NAME

STAGING_PREFIX = ".refit-agent-staging-"
LOCK_NAME = ".refit-agent.lock"
#: Under the lock names change and nothing is copied: whoever holds it longer hangs.
_LOCK_WAIT_S = 60.0
_POLL_S = 0.05

Edit = Callable[[Manifest, Places], Manifest]


class BundleChange:
    """A change to the bundle in the folder ``root``; leaving the block removes whatever was not committed.

    ``bundle`` is the bundle as it was at the beginning, which may be a draft. An OSError inside the block means
    that the bundle cannot be written, since sources report in their own words; it becomes BundleUnwritable.

    Raises:
        BundleError: there is no bundle, or its manifest is not sound.
        FieldsUnknown: the manifest has what this version would lose.
        BundleUnwritable, BundleBusy.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.bundle = read_bundle(root)
        self.root = self.bundle.root
        self._made: Staging | None = None

    def __enter__(self) -> BundleChange:
        with _as_unwritable(self.root), bundle_lock(self.root):
            remove_abandoned(self.root, STAGING_PREFIX)
            self._made = Staging(self.root, STAGING_PREFIX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made is not None:
            self._made.remove()
        if isinstance(error, OSError):
            raise _unwritable(self.root, error) from error

    @property
    def _staging(self) -> str:
        assert self._made is not None
        return self._made.path

    def folder(self) -> str:
        """A new empty folder to write files into."""
        return tempfile.mkdtemp(dir=self._staging)

    @contextlib.contextmanager
    def _unsigned(self, data: bytes) -> Iterator[None]:
        """Put the signature aside if the manifest becomes other bytes; it comes back if the block does not end well.

        Before the manifest is replaced, so that no moment and no crash leaves a signature beside what it is not of.
        """
        signature, aside = os.path.join(self.root, SIGNATURE_NAME), os.path.join(self._staging, SIGNATURE_NAME)
        with open(os.path.join(self.root, MANIFEST_NAME), "rb") as file:
            changed = file.read() != data
        if changed and os.path.lexists(signature):
            os.rename(signature, aside)
        try:
            yield
        except BaseException:
            if os.path.lexists(aside):
                os.rename(aside, signature)
            raise

    def commit(self, edit: Edit) -> Manifest:
        """Apply ``edit`` to the manifest as it is now, with the new files in the places that it gave them.

        ``edit`` gets the manifest and `Places`, and returns the new one; it must look at what it relies on
        again, since another command may have changed it. Files that no manifest names any more are removed,
        but for weights that were not copied in, and a signature, which the change made void.

        Raises:
            BundleError: the new manifest would not be accepted, or ``edit`` refuses; nothing was changed.
        """
        with bundle_lock(self.root):
            old = read_bundle(self.root).manifest
            places = Places(self.root, old)
            new = edit(old, places)
            data = encode_manifest(new, os.path.join(self.root, MANIFEST_NAME))
            with places.moved(), self._unsigned(data):
                replace_file(self.root, MANIFEST_NAME, data, self._staging)
            _after(self.root, old, new)
        return new


def read_bundle(root: str | os.PathLike[str]) -> Bundle:
    """The bundle or draft in ``root``, fit to be changed.

    Raises:
        BundleError: as `Bundle.open`.
        FieldsUnknown: the manifest has fields that would be lost.
    """
    bundle = Bundle.open(root, draft=True)
    path = os.path.join(bundle.root, MANIFEST_NAME)
    with open(path, "rb") as file:
        strangers = unknown_fields(file.read())
    if strangers:
        raise FieldsUnknown(path=path, fields=", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else ""))
    return bundle


def encode_manifest(manifest: Manifest, path: str) -> bytes:
    """The manifest as it stands in ``bundle.json``, which may be a draft. Raises BundleError if it is not sound."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    decode_manifest(data, path, draft=True)
    return data


def replace_file(root: str, name: str, data: bytes, temporary: str) -> None:
    """Put ``data`` at ``name`` in ``root``, by way of a new file in the folder ``temporary`` of the same disk."""
    path = os.path.join(temporary, f"new-{name}")
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path, os.path.join(root, name))


@contextlib.contextmanager
def bundle_lock(root: str) -> Iterator[None]:
    """Hold the right to change names in the bundle's folder. The kernel frees it when the process ends.

    Raises:
        BundleBusy: somebody else has held it for too long.
        OSError: the lock file cannot be made.
    """
    path = os.path.join(root, LOCK_NAME)
    lock = FileLock(path)
    ends = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout as error:
            if time.monotonic() >= ends:
                raise BundleBusy(bundle=root, seconds=round(_LOCK_WAIT_S)) from error
        except NotImplementedError as error:
            raise BundleUnwritable(bundle=root, detail="its file system has no file locks") from error
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        # A waiter that gets the deleted file's lock sees that it has no name any more and opens a new one.
        with contextlib.suppress(OSError):
            os.unlink(path)
        lock.release()


def _after(root: str, old: Manifest, new: Manifest) -> None:
    """What the new manifest made worthless; it is in force already, so nothing here may fail."""
    with contextlib.suppress(OSError):
        fsync_folder(root)
    kept = {ref.path for model in new.models for ref in model.files()} | not_copied(old)
    for path in {ref.path for model in old.models for ref in model.files()} - kept:
        remove_file(root, path)


def not_copied(manifest: Manifest) -> set[str]:
    """The weights that lay in the bundle before it named them: perhaps the only ones there are, so never removed."""
    return {ref.path for model in manifest.models for ref in model.weight_files() if not ref.copied}


@contextlib.contextmanager
def _as_unwritable(root: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(root, error) from error


def _unwritable(root: str, error: OSError) -> BundleUnwritable:
    where = "" if error.filename is None else f" ({os.fsdecode(error.filename)})"
    return BundleUnwritable(bundle=root, detail=f"{error.strerror or error}{where}")
