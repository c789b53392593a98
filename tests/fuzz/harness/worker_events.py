"""The parent of a worker whose output is the input: it gets a result or an error in words, whatever was said."""

from __future__ import annotations

import io
import os
import pickle
import random
from typing import Any

import msgspec

from refit_agent.errors import RefitAgentError
from refit_agent.progress import Progress, ProgressMeter
from refit_agent.refit import launch, worker_process
from refit_agent.refit.messages import Done, FetchJob, Phase
from refit_agent.worker import plain_facts

from .. import mutators, sandbox

_LOG = str(sandbox.folder("events") / "log")
_JOB = FetchJob(staging="/", target="/t", url="https://example.org/w", size=1, sha256="0" * 64)


class _Ended:
    """A process that has said what it had to say, as `subprocess` shows it; its number is nobody's child."""

    pid = 1
    returncode = 0

    def __init__(self, said: bytes) -> None:
        self.stdin = open(os.devnull, "wb")  # noqa: SIM115 - closed by whoever stops the process
        self.stdout = io.BytesIO(said)

    def wait(self) -> int:
        return 0

    def poll(self) -> int:
        return 0


def check(data: bytes) -> bool:
    """Let a worker say ``data``."""
    told: list[Progress] = []
    meter = ProgressMeter(told.append)

    def on_phase(event: Phase) -> None:
        assert isinstance(event, Phase)
        meter(event.phase, event.done, event.total, event.part, event.parts)

    real, worker_process.start = worker_process.start, lambda *_: _Ended(data)  # type: ignore[assignment]
    try:
        done = launch.run_worker(_JOB, _LOG, 30, on_phase)
    except RefitAgentError as error:
        _look(error)
        return error.code not in ("worker-crashed",)
    finally:
        worker_process.start = real
        fractions = [step.fraction for step in told]
        assert fractions == sorted(fractions) and all(0 <= f <= 1 for f in fractions), f"progress went {fractions}"
    assert isinstance(done, Done)
    assert all(isinstance(file.size, int) for file in done.files)
    return True


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One of the lines turned into another, moved, or said twice."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    if rng.random() < 0.7:
        lines[place] = mutators.json_document(lines[place], rng)
    else:
        lines.insert(rng.randrange(len(lines) + 1), lines[place])
    return b"\n".join(lines)


def _look(error: RefitAgentError) -> None:
    """Whoever gets the error can show it, send it on, and hand it to another process."""
    text: Any = str(error)
    assert text and isinstance(error.hint, str) and 0 < error.exit_code < 128
    assert str(pickle.loads(pickle.dumps(error))) == text
    msgspec.json.encode(plain_facts(error.facts))
