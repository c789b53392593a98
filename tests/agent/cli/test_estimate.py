"""Percentages and remaining times of several pieces of work: never back, never below nothing, never a guess of the air."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refit_agent.cli.estimate import Estimate, Remaining

costs = st.lists(st.sampled_from([0.0, 1.0, 5.0, 1e9]), min_size=1, max_size=5)


@given(costs, st.data())
def test_it_never_goes_back_and_ends_at_100(costs: list[float], data: st.DataObject) -> None:
    """Whatever the pieces cost, report and end as."""
    estimate = Estimate(costs)
    now, before = 0.0, 0.0
    for number in range(len(costs)):
        for fraction in data.draw(st.lists(st.floats(0, 1), max_size=5)):
            now += data.draw(st.floats(0, 100))
            estimate.advance(number, fraction, now)
            assert before <= estimate.percent <= 100
            before = estimate.percent
            left = estimate.remaining
            assert left is None or left.seconds >= 0
        now += data.draw(st.floats(0, 100))
        estimate.finish(number, now, worked=data.draw(st.booleans()))
        assert before <= estimate.percent <= 100
        before = estimate.percent
    assert estimate.percent == 100


def test_pieces_count_by_their_cost() -> None:
    """What is a hit counts for nothing, unless all are; what is worked on against expectation counts after all."""
    estimate = Estimate([0.0, 1.0, 3.0])
    estimate.finish(0, 0.0, worked=False)
    assert estimate.percent == 0
    estimate.advance(1, 0.5, 1.0)
    assert estimate.percent == 12.5
    estimate.finish(1, 2.0, worked=True)
    assert estimate.percent == 25
    hits = Estimate([0.0, 0.0])
    hits.finish(0, 0.0, worked=False)
    assert hits.percent == 50
    surprised = Estimate([0.0, 1e8])
    surprised.advance(0, 0.5, 1.0)
    assert surprised.percent == 25


def test_no_estimate_before_it_is_honest() -> None:
    """Neither from the first moments nor from the first steps, which are quick."""
    estimate = Estimate([1.0])
    estimate.advance(0, 0.5, 0.0)
    estimate.advance(0, 0.6, 0.9)
    assert estimate.remaining is None
    estimate = Estimate([1.0])
    estimate.advance(0, 0.0, 0.0)
    estimate.advance(0, 0.1, 50.0)
    assert estimate.remaining is None
    estimate.advance(0, 0.5, 60.0)
    assert estimate.remaining == Remaining(60.0, pytest.approx(60.0))


def test_it_counts_down_and_ends_in_not_knowing() -> None:
    """Without news the seconds pass; once they are over nobody knows."""
    left = Remaining(100.0, 5.0)
    assert (left.at(100.0), left.at(103.0), left.at(105.0), left.at(105.1)) == (5.0, 2.0, 0.0, None)


def test_it_does_not_jump() -> None:
    """One odd step moves the estimate a little, a lasting change of pace moves it there."""
    estimate = Estimate([1.0])
    for second in range(31):
        estimate.advance(0, second / 100, float(second))
    steady = estimate.remaining
    assert steady is not None and steady.seconds == pytest.approx(70.0)
    estimate.advance(0, 0.6, 30.1)
    moved = estimate.remaining
    assert moved is not None and 60 < moved.seconds < 70, "20 by the pace so far"
    for tick in range(1, 200):
        estimate.advance(0, 0.6 + tick / 10000, 30.1 + tick / 10)
    settled = estimate.remaining
    assert settled is not None and settled.seconds == pytest.approx(50 * 0.38 / 0.62, rel=0.2)


def test_time_that_others_worked_says_nothing_of_the_pace() -> None:
    """Waiting for another process, which ends as a hit, and hits do not make the rest look slow or quick."""
    estimate = Estimate([1.0, 1.0, 1.0])
    estimate.advance(0, 0.0, 0.0)
    estimate.advance(0, 1.0, 500.0)
    estimate.finish(0, 500.0, worked=False)
    assert estimate.remaining is None
    estimate.advance(1, 0.0, 500.0)
    estimate.advance(1, 0.5, 502.0)
    left = estimate.remaining
    assert left is not None and left.seconds == pytest.approx(6.0)


def test_a_fallback_stands_still() -> None:
    """A candidate that failed late, and the next that starts anew: no step back, and no estimate for ever."""
    estimate = Estimate([1.0])
    estimate.advance(0, 0.0, 0.0)
    estimate.advance(0, 0.9, 9.0)
    estimate.advance(0, 0.1, 10.0)
    assert estimate.percent == 90
    left = estimate.remaining
    assert left is not None and left.at(9.5) is not None and left.at(11.0) is None
