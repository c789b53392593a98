"""The files of external data that a restored model needs, below its folder and never outside of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from refit_agent.authoring.errors import NotRestorable, OutputRefused
from refit_agent.authoring.stripping.input_files import InputFiles
from refit_agent.authoring.stripping.marker import OriginalFile
from refit_agent.authoring.stripping.output_files import OutputFiles
from refit_agent.authoring.stripping.splice import Copy, write_pieces
from refit_agent.authoring.stripping.survey import Survey
from refit_agent.digest import hash_file


class ExternalOutputs:
    """Writes the original's files of external data below the target's folder."""

    def __init__(
        self, stripped: str, model: str, target: str, outputs: OutputFiles, progress: Callable[[int], None]
    ) -> None:
        self._stripped, self._model, self._target = stripped, model, target
        self._folder = os.path.dirname(target) or "."
        self._outputs = outputs
        self._progress = progress

    def plan(self, found: Survey, originals: tuple[OriginalFile, ...]) -> dict[str, OriginalFile]:
        """Location -> what it must hold, of the files that are not there yet.

        Raises:
            OutputRefused: another file is there, or the place is outside of the folder.
        """
        todo: dict[str, OriginalFile] = {}
        places = {os.path.normpath(self._target)}
        for location, original in zip(found.external, originals, strict=True):
            path = self._path(location)
            if os.path.normpath(path) in places:
                if os.path.normpath(path) == os.path.normpath(self._target):
                    raise OutputRefused(path=path, detail="the model's external data belong there")
                continue  # "w.bin" and "./w.bin"
            places.add(os.path.normpath(path))
            if not os.path.lexists(path):
                todo[location] = original
            elif not self._holds(path, original):
                detail = "another file has this name, and the model's external data belong there"
                raise OutputRefused(path=path, detail=detail)
        return todo

    def copy(self, inputs: InputFiles, source: str, location: str, original: OriginalFile) -> None:
        """Copy one file, and compare it with what it must be."""
        path = self._path(location)
        digest = hashlib.sha256()
        size = inputs.size(source)
        out = self._outputs.create(path, exclusive=True)
        write_pieces(out, [Copy(source, 0, size)], inputs, digest, self._progress)
        if (digest.hexdigest(), size) != (original.sha256, original.size):
            detail = f"its external data {location!r} are not those that the copy was made from"
            raise NotRestorable(path=self._stripped, model=self._model, detail=detail)

    def _path(self, location: str) -> str:
        path = os.path.join(self._folder, *location.split("/"))
        root = os.path.realpath(self._folder)
        if os.path.commonpath((root, os.path.realpath(path))) != root:
            detail = "a symbolic link on the way leads out of the folder, and the model's external data belong there"
            raise OutputRefused(path=path, detail=detail)
        return path

    def _holds(self, path: str, original: OriginalFile) -> bool:
        if not os.path.isfile(path) or os.path.getsize(path) != original.size:
            return False
        return hash_file(path, self._progress)[0] == original.sha256
