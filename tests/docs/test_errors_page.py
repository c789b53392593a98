"""docs/errors.md names every code there is, with the sentence that users see."""

from __future__ import annotations

import re
from pathlib import Path

from docs.error_table import page
from refit_agent.errors import error_classes

ROOT = Path(__file__).parents[2]


def test_the_page_is_that_of_the_classes() -> None:
    """`python tests/docs/error_table.py > docs/errors.md` makes it anew."""
    assert (ROOT / "docs/errors.md").read_text() == page()


def test_every_exit_code_of_a_class_is_explained() -> None:
    """An installer decides by them."""
    explained = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", page(), re.M) for code in row.split(",")}
    assert {kind.exit_code for kind in error_classes().values()} <= explained
