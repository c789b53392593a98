"""A bundle on disk: its manifest, and its files opened without ever leaving its folder."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from refit_agent import settings
from refit_agent.errors import (
    BundleFileMismatch,
    BundleFileMissing,
    BundleFileUnreadable,
    BundleMissing,
    ManifestInvalid,
    SignatureMissing,
    UnknownModel,
    UnsafePath,
)
from refit_agent.errors.bundle import file_error, is_machine_s_fault
from refit_agent.manifest import MAX_MANIFEST_BYTES, FileRef, Manifest, Model, decode_manifest

MANIFEST_NAME = "bundle.json"
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_RIGHTS = "Give this user the right to read the bundle's folder and its files, or run this as a user who has it."
#: O_NONBLOCK: a FIFO in this place must not hold the caller for ever.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Bundle:
    """An opened bundle. Holds no file open; safe to share between threads.

    Attributes:
        root: absolute path of the folder.
        manifest: the decoded ``bundle.json``.
        signed: whether a key that the caller pinned has signed it.
    """

    __slots__ = ("manifest", "root", "signed")

    def __init__(self, root: str, manifest: Manifest, *, signed: bool = False) -> None:
        self.root = root
        self.manifest = manifest
        self.signed = signed

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        public_keys: Sequence[str] | None = None,
        *,
        draft: bool = False,
        to_make: bool = False,
    ) -> Bundle:
        """The bundle in the folder ``path`` (or whose ``bundle.json`` is ``path``).

        Reads the manifest and nothing else, so it costs the same whatever the bundle's size. With
        ``public_keys`` (see `signature`) one of them must have signed it, which takes a tenth of a millisecond.
        So must one of the keys that the setting ``public_keys`` of this machine names, whatever the caller gave.
        ``draft`` also takes one that is still being made, see `decode_manifest`. It is for those who make bundles,
        as is ``to_make``, and neither asks this machine's setting: nothing of the bundle is going to be used here.

        Raises:
            BundleMissing, BundleFileUnreadable, ManifestInvalid, ManifestTooNew, UnsafePath.
            SignatureMissing, SignatureInvalid, VerifierMissing: only with ``public_keys``, or that setting.
            SettingInvalid: a settings file is not what it must be.
        """
        root = os.path.abspath(os.fspath(path))
        if _not_text(root):
            raise BundleMissing(bundle=ascii(root), detail="its path is not text that every program can take (UTF-8)")
        if os.path.basename(root) == MANIFEST_NAME and not os.path.isdir(root):
            root = os.path.dirname(root)
        name = os.path.join(root, MANIFEST_NAME)
        try:
            fd = os.open(name, _OPEN_FLAGS)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise BundleMissing(bundle=root, detail=f"{MANIFEST_NAME} is not a regular file")
                if status.st_size > MAX_MANIFEST_BYTES:
                    raise ManifestInvalid(path=name, detail=f"it is larger than {MAX_MANIFEST_BYTES} bytes")
                data = os.read(fd, status.st_size)
            finally:
                os.close(fd)
        except OSError as error:
            detail = error.strerror or str(error)
            if error.errno in _FORBIDDEN:
                # There may well be a bundle: to look for another folder would be in vain.
                raise BundleFileUnreadable(path=name, detail=detail, hint=_RIGHTS) from error
            if is_machine_s_fault(error):
                raise BundleFileUnreadable(path=name, detail=detail) from error
            raise BundleMissing(bundle=root, detail=f"{detail} ({name})") from error
        if public_keys is not None:
            # Before anything in it is believed, and of the very bytes that are decoded below.
            from refit_agent.signature import require_signature

            require_signature(root, data, public_keys)
        if not (draft or to_make):
            _require_allowed(root, data)
        return cls(root, decode_manifest(data, name, draft=draft), signed=public_keys is not None)

    def model(self, name: str) -> Model:
        """The model of that name; raises UnknownModel, which lists the known ones."""
        found = self.manifest.model(name)
        if found is None:
            known = ", ".join(repr(m.name) for m in self.manifest.models) or "none"
            raise UnknownModel(bundle=self.root, model=name, known=known)
        return found

    def locate(self, ref: FileRef) -> str:
        """Absolute path of a file that the manifest names, links resolved; its content is not read.

        Raises:
            BundleFileMissing: not there, or not a regular file.
            BundleFileUnreadable: nothing says that it is not there.
            BundleFileMismatch: another size than the manifest says.
            UnsafePath: a symbolic link leads out of the bundle.
        """
        path = os.path.join(self.root, *ref.path.split("/"))
        try:
            real = os.path.realpath(path, strict=True)
            status = os.stat(real)
        except OSError as error:
            raise file_error(path, error) from error
        root = os.path.realpath(self.root)
        if not is_inside(real, root):
            raise UnsafePath(
                owner=os.path.join(self.root, MANIFEST_NAME),
                path=ref.path,
                detail="leaves the bundle through a symbolic link",
            )
        if not stat.S_ISREG(status.st_mode):
            raise BundleFileMissing(path=path, detail="it is not a regular file")
        if status.st_size != ref.size:
            raise BundleFileMismatch(path=path, detail=f"it has {status.st_size} bytes and should have {ref.size}")
        return real


def _require_allowed(root: str, manifest: bytes) -> None:
    """Raise unless the bundle may be used on this machine, which its setting ``public_keys`` says."""
    keys, source = settings.public_keys()
    if keys is None:
        return
    from refit_agent.signature import require_signature

    try:
        require_signature(root, manifest, keys)
    except SignatureMissing as error:
        detail = f"none of the keys that {source} names has signed it"
        hint = "Ask the administrator of this machine, or the app's vendor, for a bundle that is signed so."
        raise SignatureMissing(bundle=root, detail=detail, hint=hint) from error


def is_inside(path: str, root: str) -> bool:
    """Whether ``path`` is ``root`` or below it, both absolute and with their links resolved."""
    try:
        return os.path.commonpath((root, path)) == root
    except ValueError:  # another drive
        return False


def _not_text(path: str) -> bool:
    """Whether a path has bytes that are not UTF-8: it could not be handed to the worker, nor shown."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return True
    return False
