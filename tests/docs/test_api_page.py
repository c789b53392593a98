"""docs/api.md names what can be imported and what can be asked for, all of it and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import refit_agent
from refit_agent import authoring
from refit_service.openapi import document

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text()


def _section(title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found, f"the page has no section {title!r}"
    return found[1]


def _names(text: str) -> set[str]:
    """What stands in backticks where the page explains names: before a bracket or alone."""
    return set(re.findall(r"`([A-Za-z_]\w*)(?:\([^`]*\))?`", text))


@pytest.mark.parametrize(
    ("title", "module"), [("Python, in an app", refit_agent), ("Python, for making bundles", authoring)]
)
def test_every_public_name_is_explained(title: str, module: object) -> None:
    """In the first column of the table; a few plain records below it."""
    section = _section(title)
    first = {name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in _names(row)}
    below = _names("\n".join(line for line in section.splitlines() if not line.startswith("|")))
    public = set(module.__all__)  # type: ignore[attr-defined]
    assert first <= public
    assert public <= first | below


def test_every_option_of_ensure_engine_is_shown() -> None:
    """In the one call that shows them all, with its default."""
    import inspect

    shown = dict(re.findall(r"^    (\w+)=(.+?), +#", _section("Python, in an app"), re.M))
    wanted = {
        name: parameter.default
        for name, parameter in inspect.signature(refit_agent.ensure_engine).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert shown.keys() == wanted.keys()
    for name, default in wanted.items():
        if not callable(default) and name != "progress":
            assert eval(shown[name]) == default, name


def test_every_address_is_explained_and_called() -> None:
    """The table has the OpenAPI document's methods and paths, and the block below it calls each."""
    section = _section("HTTP")
    paths = document()["paths"]
    assert isinstance(paths, dict)
    real = {
        f"{method.upper()} {path}"
        for path, operations in paths.items()
        for method in operations
        if method != "parameters"
    }
    table = "".join(re.findall(r"^\| `.*", section, re.M))
    assert set(re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) [^`]+)`", table)) == real
    calls = re.findall(r"ask (.*?http://localhost(\S+).*)", section)
    called = set()
    for words, path in calls:
        method = "DELETE" if "-X DELETE" in words else "POST" if "--json" in words or "-X POST" in words else "GET"
        called.add(f"{method} {re.sub(r'[$](id|lease)', '{id}', path).rstrip(chr(34))}")
    assert called == real
