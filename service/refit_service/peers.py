"""Who is at the other end of a connection, and when a process ends: one file for each operating system."""

from __future__ import annotations

import sys

if sys.platform == "linux":
    from refit_service.peers_linux import open_process, peer_uid, tcp_peer_uid
else:
    from refit_service.peers_other import open_process, peer_uid, tcp_peer_uid

__all__ = ["open_process", "peer_uid", "tcp_peer_uid"]
