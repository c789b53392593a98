"""The named steps of the pipeline, and which of them a call to the file system belongs to.

The table is read from the top; a call that fits nowhere is an error of the table, and a step without a call is one of
the matrix: both are asserted, so that a change of the pipeline cannot make the matrix smaller unnoticed.
"""

from __future__ import annotations

import re

from .layer import Call

#: Step -> what it is for a reader of the table.
STEPS = {
    "open": "the manifest, and where the bundle's files are",
    "detect": "the machine, remembered in the state folder",
    "look up": "the entry by its key",
    "prepare": "the folders of the cache",
    "lock": "the right to make this engine",
    "quarantine": "a damaged entry set aside",
    "sweep": "what killed processes left",
    "room": "sizes of entries, quota, free disk",
    "evict": "the least recently used entries",
    "fetch": "weights from elsewhere",
    "stage": "a folder to work in",
    "start": "the worker, its log, its files' identities",
    "verify": "hashes of the bundle's files",
    "decompress": "the plan",
    "load": "the plan, by the runtime",
    "map": "names to weights",
    "refit": "weights into the engine",
    "serialise": "the engine's model file",
    "write": "the engine's weights",
    "fsync": "files and folders on the disk",
    "check": "the written engine against golden data",
    "entry": "entry.json",
    "rename": "into its published place",
    "clean up": "staging folder and log",
    "lease": "on the published entry",
    "forget": "earlier failures",
    "serve": "the service's socket",
}

_OURS = r"home/cache/tmp/[KW]\.\*"
_HOLDER = "parent|daemon"
#: Roles, calls, paths, phases (all whole, "" for any) -> step.
_TABLE = [
    # ---- the worker: by its files where it has some of its own, else by the phase that it reported
    ("worker", "", r"home/cache/(partial/.*|tmp/W\.\*\.log)", "", "fetch"),
    ("worker", "phase", "fetch", "", "fetch"),
    ("worker", "fsync", "", "", "fsync"),
    ("worker", "phase", "start", "", "start"),
    ("worker", "open|read", "bundle/(models|golden)/.*", "start|unpack|open", "verify"),
    ("worker", "open|read", "bundle/golden/.*", "map|refit|verify", "verify"),
    ("worker", "", "", "start|-", "start"),
    ("worker", "", "", "unpack", "decompress"),
    ("worker", "", "", "open", "load"),
    ("worker", "", "", "map", "map"),
    ("worker", "", "", "refit", "refit"),
    ("worker", "", "", "verify", "verify"),
    ("worker", "", rf"{_OURS}/weights\.bin", "write", "write"),
    ("worker", "", "", "write", "serialise"),
    ("worker", "", "", "check|done", "check"),
    # ---- whoever holds the lock
    (_HOLDER, "", "(bundle|settings)(/.*)?", "", "open"),
    ("daemon", "", "home/run(/.*)?", "", "serve"),
    (_HOLDER, "", r"home/state/failures(/.*)?", "", "forget"),
    (_HOLDER, "", "home|home/state(/.*)?", "", "detect"),
    (_HOLDER, "fsync", "", "", "fsync"),
    (_HOLDER, "rename", rf"{_OURS} > home/cache/engines/[KW]", "", "rename"),
    (_HOLDER, "", "home/cache/engines/. > home/cache/quarantine/.*", "", "quarantine"),
    (_HOLDER, "", "home/cache/partial(/.*)?( > .*)?", "", "fetch"),
    (_HOLDER, "", r"home/cache/locks/[KW]\.lock", "", "lock"),
    (_HOLDER, "mkdir|stat", "home/cache(/locks)?", "", "prepare"),
    (_HOLDER, "mkdir|stat", "home/cache/(engines|tmp|quarantine)", "", "prepare"),
    (_HOLDER, "", "home/cache/CACHEDIR.TAG", "", "prepare"),
    (_HOLDER, "statvfs", "", "", "room"),
    (_HOLDER, "", "home/cache/(engines/|quarantine)", "", "room"),
    (_HOLDER, "list", "home/cache/(tmp|locks)", "", "sweep"),
    (_HOLDER, "open|stat", "home/cache/engines/[KW](/entry.json)?", "", "look up"),
    (_HOLDER, "list", "home/cache/engines/[KW]", "", "room"),
    (_HOLDER, "", "home/cache/engines/[KW](/.*)?", "", "lease"),
    (_HOLDER, "", "home/cache/engines/. > home/cache/tmp/.*", "", "evict"),
    (_HOLDER, "lock", "home/cache/engines/[ABCN]/entry.json", "", "evict"),
    (_HOLDER, "", r"home/cache/(tmp/[ABCN]\.\*(/.*)?|locks/[ABCN]\.lock)", "", "evict"),
    (_HOLDER, "", "home/cache/engines/[^KW](/.*)?", "", "room"),
    (_HOLDER, "", r"home/cache/(tmp/L\.\*(\.log)?(/.*)?|locks/L\.lock|quarantine/.*)", "", "sweep"),
    (_HOLDER, "mkdir", _OURS, "", "stage"),
    (_HOLDER, "create", rf"{_OURS}\.log", "", "start"),
    (_HOLDER, "create|write|stat", rf"{_OURS}/.*", "", "entry"),
    (_HOLDER, "open", rf"{_OURS}(\.log|\.lean)?", "", "clean up"),
    (_HOLDER, "stat", rf"{_OURS}\.log", "", "start"),
    (_HOLDER, "", rf"{_OURS}(\.log|\.lean)?(/.*)?", "", "clean up"),
]
_RULES = [(*(re.compile(pattern or ".*") for pattern in rule[:4]), rule[4]) for rule in _TABLE]


def step_of(call: Call) -> str:
    """The step that a call belongs to. Raises LookupError for one that the table does not know."""
    for role, name, path, phase, step in _RULES:
        if all(
            pattern.fullmatch(text)
            for pattern, text in ((role, call.role), (name, call.call), (path, call.path), (phase, call.phase))
        ):
            return step
    raise LookupError(f"no step has {call.words} (phase {call.phase}); add it to {__name__}")
