"""New files that appear together, whole, or not at all; what was there before is as it was until they do."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO

from refit_agent.authoring.errors import OutputInTheWay, OutputRefused, OutputUnwritable
from refit_agent.authoring.new_folders import missing_folders
from refit_agent.authoring.stripping.input_files import InputFiles
from refit_agent.digest import fsync_folder

_BUFFER_BYTES = 1 << 20


@dataclass(slots=True)
class _Output:
    path: str
    temporary: str
    file: BinaryIO
    exclusive: bool


class OutputFiles:
    """Files under temporary names in their folders, given their own by `commit`.

    Leaving the block without it removes everything that was made. An OSError inside the block means that an
    output cannot be written, since inputs report in their own words; it becomes OutputUnwritable.

    Args:
        inputs: files that no output may be, under whatever name. What is added to it later counts too.
        target: the output that an error names when no other is known.
        force: whether files that are there may be replaced.
    """

    def __init__(self, inputs: InputFiles, target: str, *, force: bool) -> None:
        self._inputs = inputs
        self._target = target
        self._force = force
        self._outputs: list[_Output] = []
        self._folders: list[str] = []

    def __enter__(self) -> OutputFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for output in self._outputs:
            with contextlib.suppress(OSError):  # the buffer's last bytes may not fit on the disk either
                output.file.close()
            with contextlib.suppress(OSError):
                os.unlink(output.temporary)
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        self._outputs, self._folders = [], []
        if isinstance(error, OSError):
            path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else self._target
            raise OutputUnwritable(path=path, detail=error.strerror or str(error)) from error

    def create(self, path: str, *, exclusive: bool = False) -> BinaryIO:
        """A new file to be written, which will be ``path``; it belongs to this object and must not be closed.

        A file that is at ``path`` already is replaced with ``force``, but never with ``exclusive``. Folders that are
        missing on the way are made, and removed again if nothing comes of it.

        Raises:
            OutputInTheWay: there is a file, and not ``force``.
            OutputRefused: ``path`` is one of the inputs, another output, or no regular file.
            OSError
        """
        self.require_place(path)
        folder = os.path.dirname(path) or "."
        self._make_folders(folder)
        temporary = os.path.join(folder, f".refit-agent-{secrets.token_hex(8)}.tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        try:
            handle = os.open(temporary, flags, 0o666)
        except OSError as error:
            raise OutputUnwritable(path=path, detail=error.strerror or str(error)) from error
        file = open(handle, "wb", buffering=_BUFFER_BYTES)  # noqa: SIM115 - closed by __exit__ or commit
        self._outputs.append(_Output(path, temporary, file, exclusive or not self._force))
        return file

    def _make_folders(self, folder: str) -> None:
        for path in missing_folders(folder):
            os.mkdir(path)
            self._folders.append(path)

    def commit(self) -> None:
        """Give every file its name, in the order in which they were created; they are on the disk then.

        Raises:
            OutputRefused: something has taken an exclusive name meanwhile.
            OSError: those that had their names already were removed again, unless they replaced a file.
        """
        for output in self._outputs:
            output.file.flush()
            os.fsync(output.file.fileno())
            output.file.close()
        placed: list[str] = []
        try:
            for output in self._outputs:
                fresh = not os.path.lexists(output.path)
                _place(output)
                if fresh:
                    placed.append(output.path)
        except BaseException:
            for path in placed:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            raise
        folders = {os.path.dirname(output.path) or "." for output in self._outputs}
        folders.update(os.path.dirname(folder) or "." for folder in self._folders)
        self._outputs, self._folders = [], []
        for folder in folders:
            fsync_folder(folder)

    def require_place(self, path: str) -> None:
        """As `require_free`, and raise OutputInTheWay if there is a file that may not be replaced: soon said, where it
        would else be found when all the work is done."""
        self.require_free(path)
        if not self._force and os.path.lexists(path):
            raise OutputInTheWay(path=path, detail="")

    def require_free(self, path: str) -> None:
        """Raise OutputRefused if ``path`` is an input under whatever name, another output, or no regular file."""
        if any(_same_name(path, output.path) for output in self._outputs):
            raise OutputRefused(path=path, detail="two of the files to write have this name")
        try:
            info = os.stat(path)
        except FileNotFoundError:
            return
        if not stat.S_ISREG(info.st_mode):
            raise OutputRefused(path=path, detail="something that is not a regular file has this name")
        for name in self._inputs.paths:
            with contextlib.suppress(OSError):
                if os.path.samestat(info, os.stat(name)):
                    raise OutputRefused(path=path, detail=f"it is the same file as {name}, which is to stay as it is")


def _place(output: _Output) -> None:
    if not output.exclusive:
        os.replace(output.temporary, output.path)
        return
    try:
        os.link(output.temporary, output.path)  # unlike a rename, it never replaces what came in between
    except FileExistsError as error:
        raise OutputRefused(path=output.path, detail="another file has taken this name meanwhile") from error
    except OSError:  # a file system without hard links
        if os.path.lexists(output.path):
            raise OutputRefused(path=output.path, detail="another file has taken this name meanwhile") from None
        os.replace(output.temporary, output.path)
        return
    os.unlink(output.temporary)


def _same_name(one: str, other: str) -> bool:
    return os.path.normcase(os.path.abspath(one)) == os.path.normcase(os.path.abspath(other))
