"""What on Linux (and WSL) changes whenever the GPUs or the driver do, read without NVML.

An NVML session costs tens of milliseconds and the driver's locks; these are a few
small reads of /proc and /dev.
"""

from __future__ import annotations

import os

_LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "/usr/lib64/libnvidia-ml.so.1",
    "/usr/lib/libnvidia-ml.so.1",
    "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
)


def parts(root: str = "") -> list[str]:
    """The machine's part of the fingerprint as lines without line breaks.

    ``root`` is put before every path, for tests. Never raises: what cannot be read counts as absent.
    A MIG mode switched on with no slice made yet does not show here; nor does a group membership.
    """
    nvidia = root + "/proc/driver/nvidia"
    found = [
        "boot " + _text(root + "/proc/sys/kernel/random/boot_id"),
        "driver " + _text(nvidia + "/version"),
        "gpus " + " ".join(_names(nvidia + "/gpus")),
        "nodes " + " ".join(sorted(n for n in _names(root + "/dev") if n.startswith("nvidia") and n[6:].isdigit())),
        "mig " + " ".join(_slices(nvidia + "/capabilities")),
        "dxg " + identity(root + "/dev/dxg", follow_time=False),
    ]
    found += ["nvml " + identity(root + path) for path in _LIBRARIES]
    return found


def identity(path: str, *, follow_time: bool = True) -> str:
    """Inode, size and (unless told otherwise) mtime of ``path``, "" when there is none.

    Device nodes get a new mtime whenever somebody writes to them: leave it out for those.
    """
    try:
        seen = os.stat(path)
    except OSError:
        return ""
    stamp = seen.st_mtime_ns if follow_time else 0
    return f"{seen.st_ino}:{seen.st_size}:{stamp}"


def _slices(capabilities: str) -> list[str]:
    """MIG slices as the kernel lists them: "gpu0/gi1/ci0", sorted."""
    found = []
    for gpu in _names(capabilities):
        if not gpu.startswith("gpu"):
            continue
        mig = f"{capabilities}/{gpu}/mig"
        for gi in _names(mig):
            found.append(f"{gpu}/{gi}")
            found += [f"{gpu}/{gi}/{ci}" for ci in _names(f"{mig}/{gi}") if ci.startswith("ci")]
    return sorted(found)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(path: str) -> str:
    """The file's first 4 KiB on one line."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        data = os.read(fd, 4096)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return " ".join(data.decode("utf-8", "replace").split())
