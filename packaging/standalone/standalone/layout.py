"""Names and places: the parts, the folders, the bounds that a build must keep."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
REPOSITORY = HERE.parents[1]

#: First the default.
CUDA_MAJORS = ("13", "12")

CORE, LEAN, ORT = "core", "tensorrt-lean", "onnxruntime"
PARTS = (CORE, LEAN, ORT)
#: The parts that are in the standalone folder; the others have a folder of their own, to be laid over it.
IN_FOLDER = (CORE, LEAN)

#: Of core and tensorrt-lean together, in bytes (10^6 are one MB here). The runtime alone is 105 MB of the 190, and
#: that for CUDA 12 six more.
MOST_ON_DISK = {"13": 190_000_000, "12": 196_000_000}
MOST_COMPRESSED = 75_000_000

#: 2026-01-01: the time of every file, unless SOURCE_DATE_EPOCH says another.
DEFAULT_EPOCH = 1767225600

SHARE = "share/refit-agent"
LICENCES = f"{SHARE}/licences"
PARTS_FILE = f"{SHARE}/parts.json"
SBOM_FILES = {CORE: f"{SHARE}/sbom.cdx.json", ORT: f"{SHARE}/sbom-onnxruntime.cdx.json"}


def version() -> str:
    """The project's version, as pyproject.toml has it (the standard library reads no TOML before Python 3.11)."""
    match = re.search(r'^version = "([^"]+)"$', (REPOSITORY / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert match is not None
    return match[1]


def folder_name(part: str) -> str:
    """The name of the folder that holds this part."""
    infix = "" if part in IN_FOLDER else f"{part}-"
    return f"refit-agent-{infix}{version()}-linux-x86_64"


def locks(cuda: str) -> Path:
    """The pinned packages for this CUDA major, with their hashes."""
    return HERE / f"cu{cuda}.lock"


TOOLS_LOCK = HERE / "tools.lock"
