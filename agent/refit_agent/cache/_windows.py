"""Leases on Windows, where an open file keeps its folder from being renamed: the open handle is the lease.

Not run on Windows yet.
"""

from __future__ import annotations

import os

OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)

CLAIM_FLAGS = OPEN_FLAGS


def lock_shared(fd: int) -> bool:
    """The handle itself is the lease."""
    del fd
    return True


def lock_exclusive(fd: int) -> bool:
    """Always True: the rename that follows, once ``fd`` is closed, fails while anybody has the file open."""
    del fd
    return True


def owner_fault(status: os.stat_result) -> str:
    """The user's local application data folder carries the right access list already."""
    del status
    return ""


def link_fault(status: os.stat_result) -> str:
    """A link says nothing of its maker there."""
    del status
    return ""
