"""One process of the storm: asks, compares, holds, lets go, asks again, until it is told to stop or killed."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import time
import traceback

from refit_agent import Engine, ensure_engine
from refit_agent.cache import upkeep
from refit_agent.cache.verify import verify
from refit_agent.errors import WorkerCrashed

from .board import Board
from .ground import Expected, Ground, require_golden

_HOLD_S = 0.03
#: Some hold on for so long that others have used everything else meanwhile: then theirs is the first to go.
_LONG_SHARE, _LONG_HOLD_S = 0.15, 0.3
_THINK_S = 0.1
_LOADED_SHARE = 0.1
#: Of all requests, so many are followed by what the user may do at any time.
_PRUNED_SHARE = 0.05
_VERIFIED_SHARE = 0.02


class Violated(Exception):  # noqa: N818 - what it says is the sentence
    """What was given is not what was promised."""


def run(ground: Ground, board: Board, slot: int, seed: str, deadline_s: float) -> None:
    """Work until the board says stop. What goes wrong is noted, never raised."""
    rng = random.Random(seed)
    with open(ground.notes / f"stuck-{slot}", "w") as file:
        faulthandler.register(signal.SIGUSR1, file)
        while not board.stopping:
            board.alive(slot)
            name = rng.choice(list(ground.models))
            try:
                _one(ground, board, slot, name, rng, deadline_s)
                _upkeep(ground, board, slot, rng)
            except WorkerCrashed:
                board.add(slot, "crashed")
            except Exception as error:  # noqa: BLE001 - each is one violation, and the storm goes on
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{os.path.basename(where.filename)}:{where.lineno}"
                ground.complain(f"{os.getpid()} {name}: {type(error).__name__} at {place}: {error}")
            board.alive(slot)
            time.sleep(rng.expovariate(1 / _THINK_S))


def _one(ground: Ground, board: Board, slot: int, name: str, rng: random.Random, deadline_s: float) -> None:
    expected = ground.models[name]
    os.environ["REFIT_AGENT_CACHE_QUOTA"] = str(board.quota)
    # Failures are remembered, and a worker that was killed is one.
    engine = ensure_engine(ground.bundle, name, retry_failed=True, deadline_s=deadline_s, service=False)
    with engine:
        board.add(slot, "requests")
        board.add(slot, "hits" if engine.hit else "made")
        number = os.stat(engine.path.parent / "entry.json").st_ino
        hold_s = _LONG_HOLD_S if rng.random() < _LONG_SHARE else _HOLD_S
        for again in range(rng.randrange(1, 5)):
            if again:
                time.sleep(rng.random() * hold_s)
            _compare(engine, expected, number)
            board.add(slot, "compared")
        if rng.random() < _LOADED_SHARE:
            require_golden(engine.path, expected)
            board.add(slot, "loaded")
            _compare(engine, expected, number)


def _upkeep(ground: Ground, board: Board, slot: int, rng: random.Random) -> None:
    """`refit-agent cache prune` and `cache verify`, now and then: neither touches what is sound and leased."""
    if rng.random() < _PRUNED_SHARE:
        upkeep.prune(ground.store, board.quota)
        board.add(slot, "pruned")
    if rng.random() < _VERIFIED_SHARE:
        for verdict in verify(ground.store):
            if verdict.fault:
                raise Violated(f"verify says of {verdict.key}: {verdict.fault}")
        board.add(slot, "verified")


def _compare(engine: Engine, expected: Expected, number: int) -> None:
    """The lease is held: the files are there, whole, and the same ones as a moment ago."""
    if engine.key != expected.key:
        raise Violated(f"the key is {engine.key}, and was {expected.key}")
    folder = engine.path.parent
    try:
        for file, data in expected.files.items():
            if (folder / file).read_bytes() != data:
                raise Violated(f"{file} is not what it must be")
        if os.stat(folder / "entry.json").st_ino != number:
            raise Violated("another entry has taken the place of the leased one")
    except FileNotFoundError as error:
        raise Violated(f"taken away while it was leased: {error.filename}") from error
