"""The filters that systemd put on a running service, taken from it and put on a command where there is no systemd.

    python tests/unit_filters.py take PID FILE            # as root, on a machine with systemd; 77: it cannot be had
    python tests/unit_filters.py under FILE COMMAND ...   # as anybody, anywhere with the same processor architecture

They are the programs in the kernel's own form (seccomp(2), PTRACE_SECCOMP_GET_FILTER in ptrace(2)), so what runs under
them there runs under what the unit asks for, not under a copy of it made by hand.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import sys
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH, _GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2
#: struct sock_filter
_INSTRUCTION_BYTES = 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def take(pid: int) -> list[bytes]:
    """The filters of a process in the order in which it got them. The process stands still meanwhile.

    Raises:
        OSError: it may not be asked (root without filters of its own may, where the kernel can say it).
    """
    _ptrace(_SEIZE, pid)
    try:
        _ptrace(_INTERRUPT, pid)
        os.waitpid(pid, 0)
        found: list[bytes] = []
        while True:
            try:
                length = _ptrace(_GET_FILTER, pid, len(found))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                return found
            room = ctypes.create_string_buffer(length * _INSTRUCTION_BYTES)
            _ptrace(_GET_FILTER, pid, len(found), ctypes.addressof(room))
            found.append(room.raw)
    finally:
        _ptrace(_DETACH, pid)


def put_on(filters: list[bytes]) -> None:
    """Put them on this process and all that it starts; there is no way back."""
    _prctl(_NO_NEW_PRIVS, 1)
    for instructions in filters:
        room = ctypes.create_string_buffer(instructions)
        program = _Program(len(instructions) // _INSTRUCTION_BYTES, ctypes.addressof(room))
        _prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(program))


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    result = int(_libc.ptrace(request, pid, address, data))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {pid}")
    return result


def _prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *values):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def main(what: str, *arguments: str) -> None:
    if what == "take":
        pid, path = arguments
        try:
            taken = take(int(pid))
        except OSError as error:
            print(error, file=sys.stderr)
            # This process may not ask (filters of its own, no root), or the kernel cannot say.
            raise SystemExit(77 if error.errno in (errno.EPERM, errno.EACCES, errno.EIO) else 1) from None
        Path(path).write_text(json.dumps([base64.b64encode(f).decode() for f in taken]))
    elif what == "under":
        path, *command = arguments
        filters = [base64.b64decode(text) for text in json.loads(Path(path).read_text())]
        put_on(filters)
        os.execvp(command[0], command)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
