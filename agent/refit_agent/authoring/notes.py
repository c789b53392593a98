"""Notes: what came with an imported plan and is none of the bundle's, such as build logs and metrics.

They are kept for the app's developer in a folder beside the bundle, never in it: what lies in the bundle's folder is
shipped with it, and logs name machines and paths that are nobody's business.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from types import TracebackType
from typing import NamedTuple

from refit_agent.authoring.errors import OutputUnwritable
from refit_agent.authoring.foreign_entries import Entries, Entry, copy_entry
from refit_agent.authoring.places import file_word

_STAGING_PREFIX = ".refit-agent-notes-"
_MOST_BYTES, _MOST_BYTES_IN_ALL = 16 << 20, 64 << 20
_MOST_NOTES = 200


class Note(NamedTuple):
    """A file of the source: its name there, its size, and where it is kept, or else why it is not."""

    name: str
    size: int
    path: str
    reason: str


def notes_folder(bundle: str, model: str) -> str:
    """Where the notes about a model's engines are kept unless the caller says otherwise."""
    return os.path.join(bundle.rstrip(os.sep) + ".notes", model)


class NoteKeeper:
    """Copies notes to a new folder below ``parent``, which is made; leaving the block removes what was not published.

    With ``parent`` None nothing is kept, and every note says so.
    """

    def __init__(self, parent: str | None) -> None:
        self._parent = parent
        self._staging = ""
        self._made: list[str] = []
        self._notes: list[Note] = []

    def __enter__(self) -> NoteKeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._staging:
            shutil.rmtree(self._staging, ignore_errors=True)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                os.rmdir(folder)

    def take(self, source: Entries, entries: list[Entry]) -> None:
        """Copy those entries that are small enough.

        Raises:
            ImportRefused: one is not what it claims to be.
            OutputUnwritable
        """
        total = 0
        for entry in entries:
            reason = self._objection(entry, total)
            if reason:
                self._notes.append(Note(entry.name, entry.size, "", reason))
                continue
            total += entry.size
            name = f"{entry.number:03}-{file_word(entry.name.rpartition('/')[2])}"
            try:
                for _ in copy_entry(source, entry, os.path.join(self._folder(), name)):
                    pass
            except OSError as error:
                detail = f"the notes are not kept: {error.strerror or error}"
                raise OutputUnwritable(path=self._parent, detail=detail) from error
            self._notes.append(Note(entry.name, entry.size, name, ""))

    def publish(self, name: str) -> tuple[Note, ...]:
        """Give the folder its name, or one with a number if there is one of that name; the notes as they are now.

        Never raises: what the notes are about has been done by then.
        """
        if not self._staging:
            return tuple(self._notes)
        assert self._parent is not None
        target = os.path.join(self._parent, name)
        number = 1
        while os.path.lexists(target):
            number += 1
            target = os.path.join(self._parent, f"{name}-{number}")
        try:
            os.rename(self._staging, target)
        except OSError as error:
            reason = f"it cannot be written: {error.strerror or error}"
            return tuple(note._replace(path="", reason=note.reason or reason) for note in self._notes)
        self._staging = ""
        return tuple(note._replace(path=os.path.join(target, note.path)) if note.path else note for note in self._notes)

    def _objection(self, entry: Entry, total: int) -> str:
        if self._parent is None:
            return "notes are not wanted"
        if entry.size > _MOST_BYTES:
            return f"it is larger than {_MOST_BYTES} bytes"
        if total + entry.size > _MOST_BYTES_IN_ALL:
            return f"all notes together would be larger than {_MOST_BYTES_IN_ALL} bytes"
        kept = sum(1 for note in self._notes if note.path)
        return "" if kept < _MOST_NOTES else f"there are {_MOST_NOTES} already"

    def _folder(self) -> str:
        if not self._staging:
            assert self._parent is not None
            self._make(self._parent)
            self._staging = tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=self._parent)
        return self._staging

    def _make(self, folder: str) -> None:
        if not os.path.isdir(folder):
            above = os.path.dirname(folder)
            if above != folder:
                self._make(above)
            os.mkdir(folder)
            self._made.append(folder)
