"""What the source of an imported plan tells of it, put together with what the caller says and the plan's header."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from refit_agent.authoring.engine_facts import EngineFacts, missing_facts, require_possible, settled
from refit_agent.authoring.errors import EngineRefused
from refit_agent.authoring.new_engine import AddedEngine, KnownPlan
from refit_agent.authoring.notes import Note
from refit_agent.errors import RefitAgentError
from refit_agent.plan_header import PlanHeader
from refit_agent.progress import Progress, ProgressCallback


class ImportedEngine(NamedTuple):
    """The engine as `add_engine` added it; ``plan`` says where it was found. ``notes`` are the other files of the
    source, and ``remarks`` sentences about what could not be checked."""

    added: AddedEngine
    plan: str
    notes: tuple[Note, ...] = ()
    remarks: tuple[str, ...] = ()


def known_plan(header: PlanHeader, said: EngineFacts | None, found: EngineFacts, plan: str, where: str) -> KnownPlan:
    """What is known of a plan without a record: the caller's facts, completed by what was ``found`` at ``where``.

    Raises:
        EngineRefused: they contradict each other, or say what cannot be.
    """
    facts = settled(completed(said or EngineFacts(), found, plan, where), header)
    require_possible(facts, header, plan)
    return KnownPlan(header, None, facts, missing_facts(facts))


def completed(said: EngineFacts, found: EngineFacts, plan: str, where: str) -> EngineFacts:
    """``said`` with what only ``found`` has. Raises EngineRefused if they contradict each other."""
    merged: dict[str, Any] = {}
    for name in EngineFacts.__struct_fields__:
        mine, theirs = getattr(said, name), getattr(found, name)
        if mine is None or name == "precision":  # a word for people
            merged[name] = theirs if mine is None else mine
        elif theirs is None or mine == theirs:
            merged[name] = mine
        else:
            detail = f"{name} is said to be {_shown(mine)}, and {where} says {_shown(theirs)}"
            raise EngineRefused(plan=plan, detail=detail)
    return EngineFacts(**merged)


def library_version(text: str) -> tuple[int, ...] | None:
    """A version of TensorRT as a library or a log spells it, in at least two numbers; None if it is none.

    Dotted ("10.16.1.11"), or the one number of ``getInferLibVersion``: 101601 is 10.16.1, 110400 is 11.4.0 and 10701
    is TensorRT-RTX 1.7.1 (asked of these libraries); 8600 is 8.6.0 (NvInferVersion.h before 10).
    """
    parts = text.strip().split(".")
    if not all(part.isascii() and part.isdecimal() and len(part) < 9 for part in parts):
        return None
    numbers = tuple(map(int, parts))
    if len(numbers) > 1:
        return numbers
    number = numbers[0]
    if number < 1000:
        return None
    major, rest = divmod(number, 10000 if number >= 10000 else 1000)
    return (major, *divmod(rest, 100))


def require_version(found: tuple[int, ...], header: PlanHeader, plan: str, where: str) -> None:
    """Raise EngineRefused unless the version that ``where`` gives is that of the plan's header, as far as it goes."""
    if found != header.version[: len(found)]:
        told, built = (".".join(map(str, version)) for version in (found, header.version))
        raise EngineRefused(plan=plan, detail=f"{where} says that version {told} built it, and its header says {built}")


@contextlib.contextmanager
def told_as(path: str, label: str) -> Iterator[None]:
    """Errors that the block raises about the temporary file ``path`` tell of ``label`` instead: by the time that
    they are read it is gone."""
    try:
        yield
    except RefitAgentError as error:
        facts = {
            name: value.replace(path, label) if isinstance(value, str) else value for name, value in error.facts.items()
        }
        if facts == error.facts:
            raise
        raise type(error)(**facts) from error


def last_part(progress: ProgressCallback | None, begin: float) -> ProgressCallback | None:
    """A callback for work that is the part from ``begin`` (0 to 1) on of the whole."""
    if progress is None:
        return None

    def report(step: Progress) -> None:
        fraction = round(begin + (1 - begin) * step.fraction, 4)
        progress(Progress(phase=step.phase, text=step.text, fraction=fraction, done=step.done, total=step.total))

    return report


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
