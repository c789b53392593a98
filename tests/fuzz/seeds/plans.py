"""Headers of plans."""

from __future__ import annotations

from collections.abc import Mapping

from plan_files import plan_bytes


def headers() -> Mapping[str, bytes]:
    """Of every known kind and some builders' versions, whole, cut, and with another size than their own."""
    found = {
        f"{runtime}-{'.'.join(map(str, version))}": plan_bytes(runtime=runtime, version=version, size=size)
        for runtime, version, size in (
            ("tensorrt", (8, 6, 0, 12), 28),
            ("tensorrt", (10, 16, 1, 11), 64),
            ("tensorrt", (255, 255, 255, 255), 40),
            ("tensorrt-rtx", (1, 7, 1, 116), 64),
        )
    }
    whole = plan_bytes(size=64)
    return found | {
        "cut": whole[:27],
        "shorter": whole[:-1],
        "longer": whole + b"\0",
        "other-magic": b"ptrt" + whole[4:],
        "magic-alone": b"ftrt",
        "nothing": b"",
        "huge-size": whole[:16] + b"\xff" * 8 + whole[24:],
    }
