"""What the pages point at is there: other pages, files of the repository, modules, and tests that prove a claim."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
#: Where a module may be that the architecture names by less than its path.
SOURCES = (ROOT, ROOT / "agent/refit_agent", ROOT / "service/refit_service")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Within the repository; there is no other address of ours to link to."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_index_has_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w.-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_the_architecture_names_what_there_is() -> None:
    """Every module that it names exists, and every package of ours is named."""
    text = (DOCS / "architecture.md").read_text()
    for name in re.findall(r"`([\w./]+(?:\.py|/))`", text):
        if "<" not in name and not name.startswith("engines"):
            assert any((source / name).exists() for source in SOURCES), name
    packages = [p.parent for source in SOURCES[1:] for p in source.glob("*/__init__.py")]
    for package in packages:
        assert f"{package.name}/" in text or f"`{package.name}`" in text, f"{package.name} is nowhere on the page"


def test_the_drawing_names_what_there_is() -> None:
    """Each of our boxes is a module or a package."""
    drawing = (DOCS / "architecture.svg").read_text()
    ours = re.findall(r'class="us".*?class="name">([^<]+)<', drawing)
    assert len(ours) > 10
    known = {p.stem for source in SOURCES[1:] for p in source.rglob("*.py")} | {
        p.name for source in SOURCES[1:] for p in source.rglob("*") if p.is_dir()
    }
    words = {"ensure_engine": "provision", "cache look-up": "store", "look-up": "lookup"}
    for box in ours:
        for name in (words.get(box) or box).split(", "):
            assert words.get(name, name).rpartition("/")[2] in known, name


# ---------------------------------------------------------------- claims and their tests

CLAIM = re.compile(r"`((?:tests/)?[\w/]+\.py)::(\w+)`")


@functools.cache
def _tests_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for path, name in CLAIM.findall(page.read_text()):
        file = ROOT / "tests" / path.removeprefix("tests/")
        assert file.exists(), path
        assert name.startswith("test_"), name
        assert name in _tests_in(file), f"{path} has no {name}"


def test_every_claim_of_the_security_page_has_its_test() -> None:
    """A row of a table of claims ends in at least one test, or says in words that there is none."""
    text = (DOCS / "security.md").read_text()
    tables = re.findall(r"^\| claim \| proved by \|\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    assert len(tables) > 5
    for row in "".join(tables).splitlines():
        assert CLAIM.search(row) or "not tested" in row, row
