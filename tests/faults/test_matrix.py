"""The crash matrix: some faults of every step in every run, all of them with REFIT_AGENT_FULL_MATRIX=1.

``python -m tests.faults`` runs all of them too, and prints the table.
"""

from __future__ import annotations

import os

import pytest

from .aftermath import order_faults
from .conftest import Ready
from .deeds import kind_of
from .steps import STEPS
from .subset import subset
from .table import LEAST_FAULTS, problems

#: Read before the tests' own environment begins.
_FULL = os.environ.get("REFIT_AGENT_FULL_MATRIX") == "1"
#: Steps in which a process makes no call that can fail by itself.
_WITHOUT_ERRORS = {"load"}


def test_every_step_has_faults(ready: Ready) -> None:
    """The table of steps is complete and the matrix large: a change of the pipeline cannot make either smaller unnoticed."""
    assert {p.step for p in ready.points} == set(STEPS)
    assert len(ready.points) >= 3 * LEAST_FAULTS
    for step in STEPS:
        kinds = {kind_of(p.fault.deed) for p in ready.points if p.step == step}
        assert kinds >= {"kill", "full", "read-only", "slow"}, step
        assert "error" in kinds or step in _WITHOUT_ERRORS, step


def test_what_gets_a_name_is_on_the_disk_before(ready: Ready) -> None:
    """The order of writes, fsync and rename in every scene that makes an engine."""
    scenes = {p.scene.name: p.scene for p in ready.points}
    for name in scenes.keys() - {"hit", "prune"}:
        assert not list(order_faults(ready.matrix.clean(scenes[name]).calls)), name


@pytest.mark.parametrize("step", STEPS)
def test_a_fault_loses_nothing_and_leaves_nothing(ready: Ready, step: str) -> None:
    """A kill of each process, a disk that is full or read-only, and an error of a call."""
    points = subset(ready.points)[step]
    kinds = {kind_of(p.fault.deed) for p in points}
    assert "kill" in kinds
    assert kinds & {"full", "read-only", "error"}
    results = ready.matrix.run_all(points)
    assert not problems(results, whole=False)
    assert all(r.fired for r in results), [r.point.words for r in results if not r.fired]


@pytest.mark.skipif(not _FULL, reason="all faults take ten minutes: REFIT_AGENT_FULL_MATRIX=1")
@pytest.mark.timeout(3600)
def test_the_full_matrix(ready: Ready) -> None:
    """Every call of the pipeline, in every way that fits it."""
    assert not problems(ready.matrix.run_all(ready.points), whole=True)
