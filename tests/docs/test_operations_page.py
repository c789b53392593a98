"""docs/operations.md names every setting and every variable, and the places that the code knows."""

from __future__ import annotations

import re
from pathlib import Path

from refit_agent.settings import KEYS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
#: Between our own processes, or for the shell's completion: nobody sets them.
OURS = {"REFIT_AGENT_COMPLETE", "REFIT_AGENT_IN_SERVICE", "REFIT_AGENT_PARENT_PID"}


def test_every_setting_is_explained_with_its_variable() -> None:
    """In the order of `refit-agent settings`."""
    rows = re.findall(r"^\| `([a-z_]+)` \| `(REFIT_AGENT_[A-Z_]+)` \|", PAGE, re.M)
    assert rows == [(name, key.variable) for name, key in KEYS.items()]


def test_every_variable_that_the_code_reads_is_explained() -> None:
    sources = [p.read_text() for folder in ("agent", "service") for p in (ROOT / folder).rglob("*.py")]
    read = {name for text in sources for name in re.findall(r"\bREFIT_AGENT_[A-Z]+(?:_[A-Z]+)*\b", text)}
    assert set(re.findall(r"`(REFIT_AGENT_[A-Z_]+)` \|", PAGE)) == read - OURS


def test_the_files_that_support_wants_are_where_the_page_says() -> None:
    """`<state>/logs/service.log`, which is rotated."""
    text = (ROOT / "service/refit_service/logbook.py").read_text()
    assert '"logs"' in text
    assert '"service.log"' in text
    kept, most = (int(re.search(rf"^{name} = (\d+)", text, re.M)[1]) for name in ("_KEPT", "_MOST_BYTES"))  # type: ignore[index]
    assert (kept + 1, (kept + 1) * most) == (4, 8), "the page says 8 MB in four files"
