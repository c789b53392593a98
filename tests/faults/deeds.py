"""Which faults a call can suffer, and what the request may then end with."""

from __future__ import annotations

import errno

from .layer import Call

KILLS = ("kill", "kill-parent", "torn")
#: The request must not even notice.
BENIGN = ("short", "slow", f"errno:{errno.EINTR}")
_SLOW = "slow:150"

_EIO, _EINTR, _ENOSPC = f"errno:{errno.EIO}", f"errno:{errno.EINTR}", f"errno:{errno.ENOSPC}"
_EMFILE, _ENOMEM, _ENOLCK = f"errno:{errno.EMFILE}", f"errno:{errno.ENOMEM}", f"errno:{errno.ENOLCK}"
#: What a disk says that does not keep what it was given.
REFUSED = (_EIO, _ENOSPC)
#: By call: what it may fail with besides being killed.
_ERRORS = {
    "open": (_EIO, _EMFILE),
    "create": ("full", "readonly", _EIO, _EMFILE),
    "read": (_EIO, _EINTR),
    "write": ("full", "readonly", _EIO, _EINTR, "short", "torn"),
    "mmap": (_ENOMEM,),
    "fsync": (_EIO, _ENOSPC, _EINTR),
    "truncate": ("readonly", _EIO),
    "rename": ("readonly", _EIO, _ENOSPC),
    "mkdir": ("full", "readonly", _EIO),
    "unlink": ("readonly", _EIO),
    "rmdir": ("readonly", _EIO),
    "chmod": ("readonly", _EIO),
    "utime": ("readonly", _EIO),
    "lock": (_ENOLCK, _EINTR),
    "list": (_EIO, _EMFILE),
    "stat": (_EIO,),
    "statvfs": (_EIO,),
    "phase": (),
}


def kind_of(deed: str) -> str:
    """The column of the table that a deed belongs to."""
    if deed in KILLS:
        return "kill"
    if deed in ("full", _ENOSPC):
        return "full"
    if deed == "readonly":
        return "read-only"
    if deed.startswith("slow"):
        return "slow"
    return "error"


def deeds_of(call: Call, *, first_of_step: bool) -> list[str]:
    """Every fault that this call is given in the full matrix. The first call of each step also meets a disk that is
    full, read-only or slow from then on, whatever the call itself does."""
    deeds = ["kill", *_ERRORS[call.call]]
    if call.role == "worker" and call.call != "stat":
        deeds.append("kill-parent")
    if first_of_step:
        deeds += [deed for deed in ("full", "readonly", "kill-parent" if call.role == "worker" else "") if deed]
        deeds.append(_SLOW)
    elif call.call not in ("stat", "read"):
        deeds.append(_SLOW)
    return list(dict.fromkeys(deeds))
