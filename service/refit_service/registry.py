"""The bundles that apps registered, kept in ``<state>/bundles.json`` from one start to the next."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time

import msgspec

from refit_agent.bundle import MANIFEST_NAME, Bundle, is_inside
from refit_agent.cache.disk import write_error
from refit_agent.errors import NoSuchBundle, SettingInvalid
from refit_agent.settings import register_from
from refit_agent.state_file import drop_leftovers, replace_file
from refit_service.protocol import BundleRecord

_FILE = "bundles.json"
_ID_DIGITS = 16
_decoder = msgspec.json.Decoder(list[BundleRecord])


class Registry:
    """The registered bundles. Used by the event loop's thread alone; small files, written whole."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._path = os.path.join(state, _FILE)
        self._records: dict[str, BundleRecord] = {}

    def load(self) -> str:
        """Read what was registered before. A text says why that was not possible: the file is then set aside
        and the registry begins empty, since a service that does not start helps no app."""
        drop_leftovers(self._state, f"{_FILE}.", ".tmp")
        try:
            with open(self._path, "rb") as file:
                records = _decoder.decode(file.read())
        except FileNotFoundError:
            return ""
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            with contextlib.suppress(OSError):
                os.replace(self._path, self._path + ".damaged")
            return f"{self._path} cannot be read and was set aside: {error}"
        self._records = {record.id: record for record in records}
        return ""

    def __len__(self) -> int:
        return len(self._records)

    def records(self) -> tuple[BundleRecord, ...]:
        """All of them, oldest first."""
        return tuple(self._records.values())

    def add(self, path: str, public_keys: tuple[str, ...] | None = None) -> tuple[BundleRecord, bool]:
        """Register the bundle in the folder ``path``; gives its record and whether it is new.

        With ``public_keys`` one of them must have signed it, and must have at every later use; without any, those
        stay in force that it was registered with before.

        Raises:
            SettingInvalid: the path is not absolute, or not where bundles may be registered from.
            BundleError: there is no sound bundle.
            DiskFull, CacheUnwritable: the state folder cannot be written; nothing was registered.
        """
        root = self.folder(path)
        require_registrable(root)
        name = _id_of(root)
        known = self._records.get(name)
        if public_keys is None and known is not None:
            # An app's update that forgets the key must not open the door; unregistering does.
            public_keys = known.public_keys
        opened = Bundle.open(root, public_keys)
        app = opened.manifest.app
        record = BundleRecord(
            id=name,
            path=root,
            app=app.id,
            name=app.name,
            version=app.version,
            models=tuple(model.name for model in opened.manifest.models),
            registered=time.time() if known is None else known.registered,
            public_keys=public_keys,
        )
        if record != known:
            self._save({**self._records, name: record})
        return record, known is None

    def remove(self, name: str) -> None:
        """Forget a bundle; its engines stay in the cache until they are evicted. Raises NoSuchBundle."""
        if name not in self._records:
            raise NoSuchBundle(id=name)
        self._save({key: record for key, record in self._records.items() if key != name})

    def pinned(self, folder: str) -> tuple[str, ...] | None:
        """The keys that the bundle in ``folder``, as `folder` gives it, was registered with; None if it is not
        registered, or needs none."""
        if all(record.public_keys is None for record in self._records.values()):
            return None
        record = self._records.get(_id_of(folder))
        return None if record is None else record.public_keys

    def folder(self, bundle: str) -> str:
        """The folder of a bundle that a request names by path or id.

        Raises:
            NoSuchBundle, SettingInvalid.
        """
        if os.path.isabs(bundle):
            return _real_folder(_absolute(bundle))
        record = self._records.get(bundle)
        if record is not None:
            return record.path
        if len(bundle) == _ID_DIGITS and set(bundle) <= set("0123456789abcdef"):
            raise NoSuchBundle(id=bundle)
        return _absolute(bundle)

    def _save(self, records: dict[str, BundleRecord]) -> None:
        try:
            data = msgspec.json.format(msgspec.json.encode(list(records.values())), indent=1)
            replace_file(self._path, data, lasting=True)
        except OSError as error:
            raise write_error(error, self._path) from error
        self._records = records


def require_registrable(root: str) -> None:
    """Return if the setting ``register_from`` lets the bundle in the folder ``root``, as `Registry.folder` gives it, be
    registered.

    Raises:
        SettingInvalid: it does not, or is itself not what it must be.
    """
    allowed, source = register_from()
    if allowed is None:
        return
    if os.path.realpath(root) != root:
        # What it leads to may be another folder by the time at which the bundle is opened.
        wanted = f"a path without links (register_from of {source})"
        raise SettingInvalid(name="the bundle", value=root, wanted=wanted, hint="Register it anew.")
    if not any(is_inside(root, os.path.realpath(folder)) for folder in allowed):
        places = f"in one of these folders: {', '.join(allowed)}" if allowed else "one that may be registered: none may"
        wanted = f"{places} (register_from of {source})"
        raise SettingInvalid(name="the bundle", value=root, wanted=wanted, hint="Install the app there, or ask the administrator of this machine.")  # fmt: skip


def _real_folder(path: str) -> str:
    """The one name of a bundle's folder, whichever of its names was given: keys are pinned to it."""
    root = os.path.realpath(path)
    if os.path.basename(root) == MANIFEST_NAME and not os.path.isdir(root):
        root = os.path.dirname(root)
    return root


def _id_of(root: str) -> str:
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:_ID_DIGITS]


def _absolute(path: str) -> str:
    # The service's own folder means nothing to a client; NUL is in no file's name.
    if not os.path.isabs(path) or "\0" in path:
        raise SettingInvalid(
            name="the bundle", value=path, wanted="an absolute path, nor the id of a registered bundle"
        )
    return path
