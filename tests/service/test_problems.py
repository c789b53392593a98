"""Errors as HTTP answers."""

from __future__ import annotations

import pytest

from refit_agent.errors import BundleFileMissing, BundleFileUnreadable, RefitAgentError
from refit_service.problems import problem_of


@pytest.mark.parametrize(
    ("error", "status"),
    [(BundleFileMissing(path="x", detail="y"), 422), (BundleFileUnreadable(path="x", detail="y"), 503)],
)
def test_a_bundle_that_is_wrong_is_told_from_one_that_cannot_be_read_now(error: RefitAgentError, status: int) -> None:
    """The first will not come right by asking again."""
    found = problem_of(error, "r1")
    assert (found.status, found.code) == (status, error.code)
