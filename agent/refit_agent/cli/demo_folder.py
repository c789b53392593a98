"""The folder of the demo's bundle: made whole, never in place of somebody's files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

from refit_agent.authoring.demo_bundle import APP_ID, write_demo_bundle
from refit_agent.bundle import MANIFEST_NAME, Bundle
from refit_agent.cache.disk import write_error
from refit_agent.cli import stop
from refit_agent.digest import verify_file
from refit_agent.errors import BundleError, DiskFull, SettingInvalid


def prepare(root: str) -> Bundle:
    """The demo's bundle at ``root``, made now; one that is there already and the same stays.

    Made beside ``root`` and renamed: another demo at the same time, or Ctrl+C, finds all of it or nothing.

    Raises:
        SettingInvalid: something else is there, or the folder cannot be written.
        DiskFull, RuntimeMissing.
    """
    _require_ours(root)
    parent = os.path.dirname(root)
    try:
        with stop.patiently():
            os.makedirs(parent, mode=0o700, exist_ok=True)
            made = tempfile.mkdtemp(prefix=".refit-agent-demo-", dir=parent)
            try:
                write_demo_bundle(made)
                if not stop.requested() and not _same(made, root):
                    _replace(made, root)
            finally:
                shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        failure = write_error(error, root)
        if isinstance(failure, DiskFull):
            raise failure from error
        wanted = f"a place that can be written ({error.strerror or error})"
        hint = "Name another one with --dir, or move everything with REFIT_AGENT_HOME."
        raise SettingInvalid(name="the demo's folder", value=root, wanted=wanted, hint=hint) from error
    stop.check()
    return Bundle.open(root, to_make=True)


def remove(root: str) -> None:
    """Delete the demo's bundle."""
    _require_ours(root)
    shutil.rmtree(root, ignore_errors=True)


def _require_ours(root: str) -> None:
    """Raise SettingInvalid unless ``root`` is missing, an empty folder, or an earlier demo's bundle."""
    with contextlib.suppress(BundleError):
        if Bundle.open(root, to_make=True).manifest.app.id == APP_ID:
            return
    try:
        empty = not os.listdir(root)
    except FileNotFoundError:
        return
    except OSError:
        empty = False
    if not empty:
        raise SettingInvalid(name="the demo's folder", value=root, wanted="a new or empty folder, or an earlier demo's")


def _same(made: str, root: str) -> bool:
    """Whether the bundle at ``root`` is whole, and the one that was made just now."""
    try:
        bundle = Bundle.open(root, to_make=True)
        with open(os.path.join(made, MANIFEST_NAME), "rb") as one, open(os.path.join(root, MANIFEST_NAME), "rb") as two:
            if one.read() != two.read():
                return False
        for model in bundle.manifest.models:
            for ref in model.files():
                verify_file(bundle.locate(ref), ref)
    except (BundleError, OSError):
        return False
    return True


def _replace(made: str, root: str) -> None:
    # A folder can be renamed over an empty one at most, and on Windows not even that.
    shutil.rmtree(root, ignore_errors=True)
    try:
        os.rename(made, root)
    except OSError:
        if not _same(made, root):  # unless another demo was faster
            raise
