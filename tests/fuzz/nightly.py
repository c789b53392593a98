"""The nightly mode: each harness under atheris for a while, one after the other, each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from . import corpus, sandbox

REPOSITORY = Path(__file__).parents[2]
_MOST_RSS_MB = 2048
_LONGEST_S = 10
_MOST_INPUT_BYTES = 16_384
#: Beyond the time that was asked for: to start, and to be ended.
_GRACE_S = 60
_LAST = re.compile(r"^#\d+\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
_INITED = re.compile(r"^#\d+\s+INITED\s+cov: (\d+) ft: (\d+) corp: (\d+)", re.MULTILINE)
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


class Night(NamedTuple):
    """What came of one harness.

    ``coverage`` and ``features`` are libFuzzer's at the end, ``seed_features`` those that the corpus alone reached;
    ``crashes`` are the inputs, by now in the corpus; ``fault`` is set if it ended badly without any.
    """

    name: str
    executions: int
    coverage: int
    features: int
    seed_features: int
    grown: int
    crashes: tuple[Path, ...]
    fault: str
    log: str


def fuzz(name: str, seconds: int, keep: Path | None = None) -> Night:
    """Fuzz one harness for that long. ``keep`` is a folder for the inputs that reached something new."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-", dir=sandbox.memory()) as folder:
        found, new, scratch = (Path(folder, part) for part in ("found", "new", "tmp"))
        for part in (found, new, scratch):
            part.mkdir()
        command = [
            *(sys.executable, "-m", f"{__package__}.under_atheris", name),
            f"-max_total_time={seconds}",
            f"-rss_limit_mb={_MOST_RSS_MB}",
            f"-timeout={_LONGEST_S}",
            f"-max_len={_MOST_INPUT_BYTES}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=1",
            *(str(new), str(corpus.ROOT / name)),
        ]
        ended, log = _run(command, seconds + _GRACE_S, {**os.environ, "TMPDIR": str(scratch)})
        crashes = tuple(_saved(name, path) for path in sorted(found.iterdir()))
        grown = sorted(new.iterdir())
        if keep is not None:
            shutil.copytree(new, keep / name, dirs_exist_ok=True)
        fault = "" if ended == 0 or crashes else f"it ended with {ended} and left no input"
        at_end, at_first = _numbers(_LAST, log)[-1:], _numbers(_INITED, log)[:1]
        executed = _EXECUTED.findall(log)
        return Night(
            name=name,
            executions=int(executed[-1]) if executed else 0,
            coverage=at_end[0][0] if at_end else 0,
            features=at_end[0][1] if at_end else 0,
            seed_features=at_first[0][1] if at_first else 0,
            grown=len(grown),
            crashes=crashes,
            fault=fault,
            log=log,
        )


def report(nights: Iterable[Night], seconds: int) -> bool:
    """Print a line for each as it comes, and what broke; True if nothing did."""
    print(
        f"{'harness':20} {'executions':>10} {'per s':>7} {'edges':>6} {'features':>8} {'by seeds':>8} {'new':>5}  result"
    )
    good = True
    for night in nights:
        result = night.fault or ("ok" if not night.crashes else f"{len(night.crashes)} crash(es)")
        print(
            f"{night.name:20} {night.executions:10} {night.executions / seconds:7.0f} {night.coverage:6} "
            f"{night.features:8} {night.seed_features:8} {night.grown:5}  {result}",
            flush=True,
        )
        for path in night.crashes:
            print(f"    saved as {path.relative_to(REPOSITORY)}")
        if night.crashes or night.fault:
            good = False
            print("\n".join(f"    {line}" for line in _telling(night.log)), flush=True)
    return good


def _run(command: list[str], limit_s: float, env: dict[str, str]) -> tuple[int, str]:
    """Exit status and output; the process and its children are gone afterwards."""
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    return process.returncode, out.decode("utf-8", "replace")


def _saved(name: str, path: Path) -> Path:
    """The input that broke something, as a part of the corpus: from now on every run tries it."""
    data = path.read_bytes()
    if path.name.startswith("slow-unit") or len(data) > corpus.MOST_FILE_BYTES:
        kept = Path(tempfile.gettempdir(), f"{name}-{path.name}")
        kept.write_bytes(data)
        return kept
    return corpus.save(name, "found", data)


def _numbers(pattern: re.Pattern[str], log: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, match.groups())) for match in pattern.finditer(log)]


def _telling(log: str) -> list[str]:
    """The lines around the exception, else the last ones."""
    lines = log.splitlines()
    at = next(
        (i for i, line in enumerate(lines) if "Uncaught Python exception" in line or "ERROR: libFuzzer" in line), None
    )
    return lines[-25:] if at is None else lines[at : at + 40]
