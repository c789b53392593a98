"""Where new files of a bundle go: names that are free on every operating system, in folders that are ours.

models/MODEL/     the ONNX file with its external data beside it
engines/MODEL/    plans, lean runtimes
golden/MODEL/     inputs and outputs
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from refit_agent.authoring.errors import BundleUnwritable, NameTaken, NameUnusable
from refit_agent.digest import fsync_folder
from refit_agent.manifest import Manifest, path_fault

MODELS, ENGINES, GOLDEN = "models", "engines", "golden"
_OURS = (MODELS, ENGINES, GOLDEN)


class Places:
    """The places that one change gives to its new files. Nothing is moved before `moved`.

    Paths are relative to ``root``, with forward slashes.
    """

    def __init__(self, root: str, manifest: Manifest) -> None:
        self._root = root
        # Windows and macOS take two spellings for one file.
        self._taken = {ref.path.casefold() for model in manifest.models for ref in model.files()}
        self._moves: list[tuple[str, str]] = []

    def free(self, wanted: str) -> str:
        """``wanted``, or with a number before its first dot if a file or folder has that name."""
        folder, _, name = wanted.rpartition("/")
        stem, dot, ending = name.partition(".")
        path, number = wanted, 1
        while self._is_taken(path):
            number += 1
            path = f"{folder}/{stem}-{number}{dot}{ending}"
        return path

    def put(self, source: str, path: str) -> str:
        """Have the file ``source``, which is on the same disk, moved to ``path``; gives ``path``.

        Raises:
            NameUnusable: no path for every operating system, or one that leaves the bundle.
            NameTaken: there is a file of that name.
        """
        fault = path_fault(path)
        if fault:
            raise NameUnusable(name=path, what="a file of the bundle", detail=fault)
        if self._is_taken(path):
            raise NameTaken(bundle=self._root, what=f"a file {path}")
        self._taken.add(path.casefold())
        self._moves.append((source, path))
        return path

    @contextlib.contextmanager
    def moved(self) -> Iterator[None]:
        """Move the files to their places; they are taken back if the block does not end well.

        Raises:
            BundleUnwritable: a folder on the way is a symbolic link or no folder.
            OSError
        """
        made: list[str] = []
        placed: list[str] = []
        try:
            for source, path in self._moves:
                target = self._make_folders(path, made)
                if os.path.lexists(target):  # what is in the way was there before: it stays
                    raise BundleUnwritable(bundle=self._root, detail=f"{path} has come into being meanwhile")
                os.rename(source, target)
                placed.append(target)
            for folder in {os.path.dirname(path) for path in (*placed, *made)}:
                fsync_folder(folder)
            yield
        except BaseException:
            for path in placed:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise

    def _make_folders(self, path: str, made: list[str]) -> str:
        *folders, name = path.split("/")
        at = self._root
        for folder in folders:
            at = os.path.join(at, folder)
            if os.path.islink(at):
                raise BundleUnwritable(bundle=self._root, detail=f"{at} is a symbolic link, and could lead out of it")
            if not os.path.isdir(at):
                os.mkdir(at)
                made.append(at)
        return os.path.join(at, name)

    def _is_taken(self, path: str) -> bool:
        return path.casefold() in self._taken or os.path.lexists(os.path.join(self._root, *path.split("/")))


def remove_file(root: str, path: str) -> None:
    """Remove a file that no manifest names any more, and folders that it leaves empty; never raises.

    Only in the folders that we fill: what lies elsewhere was put there by somebody else.
    """
    parts = path.split("/")
    if parts[0] not in _OURS or path_fault(path):
        return
    folders = [os.path.join(root, *parts[:count]) for count in range(1, len(parts))]
    if any(os.path.islink(folder) for folder in folders):
        return
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(root, *parts))
        for folder in reversed(folders):
            os.rmdir(folder)


def require_folder_name(name: str, what: str) -> str:
    """``name`` if it can be one folder of a bundle on every operating system; raises NameUnusable."""
    fault = path_fault(name) if name else "is empty"
    if not fault and "/" in name:
        fault = "holds a slash, and it becomes the name of a folder"
    if not fault and name.startswith("."):
        fault = "begins with a dot, and files of that kind get lost when an app is packed"
    if not fault and len(name.encode()) > 200:
        fault = "is longer than 200 bytes"
    if fault:
        raise NameUnusable(name=name, what=what, detail=fault)
    return name


def file_word(text: str) -> str:
    """``text`` as a part of a file name: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60] or "x"


def inside(root: str, path: str) -> str | None:
    """The place of an existing file below ``root``, links resolved; None if it lies elsewhere."""
    base, real = os.path.realpath(root), os.path.realpath(path)
    try:
        relative = os.path.relpath(real, base)
    except ValueError:  # another drive
        return None
    parts = relative.split(os.sep)
    return None if parts[0] == os.pardir else "/".join(parts)
