"""A new bundle: a folder with a manifest that names an app and has no model yet."""

from __future__ import annotations

import contextlib
import os
import tempfile

import msgspec

from refit_agent.authoring.change import STAGING_PREFIX, bundle_lock, encode_manifest, replace_file
from refit_agent.authoring.errors import BundleExists, BundleUnwritable
from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.errors import SettingInvalid
from refit_agent.manifest import SCHEMA, App, Manifest


def init_bundle(root: str | os.PathLike[str], *, app_id: str, name: str, version: str) -> Bundle:
    """Make the folder ``root``, if it is missing, a bundle of the app that is so described; gives the draft.

    It is a draft, which no user's machine takes, until it has a model and every model an engine. ``app_id`` is
    in reverse-DNS form. Files that lie in the folder stay.

    Raises:
        SettingInvalid: one of the three is not of its form.
        BundleExists: there is a bundle already.
        BundleUnwritable: the folder cannot be made or written.
    """
    path = os.path.abspath(os.fspath(root))
    manifest = Manifest(schema=SCHEMA, app=_app(app_id, name, version), models=())
    data = encode_manifest(manifest, os.path.join(path, MANIFEST_NAME))
    try:
        made = _make_folder(path)
        try:
            with bundle_lock(path):
                if os.path.lexists(os.path.join(path, MANIFEST_NAME)):
                    raise BundleExists(bundle=path)
                with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=path) as temporary:
                    replace_file(path, MANIFEST_NAME, data, temporary)
        except BaseException:
            if made:
                with contextlib.suppress(OSError):
                    os.rmdir(path)
            raise
    except OSError as error:
        raise BundleUnwritable(bundle=path, detail=error.strerror or str(error)) from error
    return Bundle(path, manifest)


def _make_folder(path: str) -> bool:
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    return True


def _app(app_id: str, name: str, version: str) -> App:
    forms = {
        "id": "an id in reverse-DNS form, such as com.example.photo",
        "name": "a name of 1 to 200 characters",
        "version": "a version of 1 to 200 characters",
    }
    given = {"id": app_id, "name": name, "version": version}
    for field, wanted in forms.items():
        try:
            # Field by field, so that the message can say in words what is wrong with which.
            msgspec.convert({"id": "a.b", "name": "n", "version": "1"} | {field: given[field]}, App)
        except msgspec.ValidationError as error:
            raise SettingInvalid(
                name=f"the app's {field}", value=given[field], wanted=wanted, hint="Correct it."
            ) from error
    return App(id=app_id, name=name, version=version)
