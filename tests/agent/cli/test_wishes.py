"""What a command expects of the engines that it is to provide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refit_agent import ensure_engine
from refit_agent.bundle import Bundle
from refit_agent.cli.wishes import Outlook, Wish, wishes
from refit_agent.errors import RefitAgentError
from several_models import several_models


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return several_models(tmp_path / "bundle", 2)


def _outlook(opened: Bundle, *, own_weights: bool = False, retry_failed: bool = False) -> Outlook:
    return Outlook(opened, own_weights=own_weights, retry_failed=retry_failed, deadline_s=None)


def test_a_larger_engine_costs_more(two: Path) -> None:
    """By what will be written; and none costs nothing."""
    document = json.loads((two / "bundle.json").read_text())
    document["models"][1]["onnx"]["size"] += 1 << 30
    (two / "bundle.json").write_text(json.dumps(document))
    opened = Bundle.open(two)
    small, large = wishes(opened, opened.manifest.models, None, False, None)
    assert 0 < _outlook(opened).cost(small) < 1e8 < 1 << 30 < _outlook(opened).cost(large)


def test_what_is_in_the_cache_costs_nothing(two: Path) -> None:
    """It is a hit; with own weights nobody knows before they are hashed."""
    opened = Bundle.open(two)
    first, second = wishes(opened, opened.manifest.models, None, False, None)
    ensure_engine(two, "m1").close()
    outlook = _outlook(opened)
    assert outlook.is_ready(first) and outlook.cost(first) == 0
    assert not outlook.is_ready(second) and outlook.cost(second) > 0
    assert not _outlook(opened, own_weights=True).is_ready(first)


def test_what_will_fail_at_once_costs_nothing(two: Path) -> None:
    """No such target, a fault in the wish itself, and what failed before, unless it is to be tried again."""
    opened = Bundle.open(two)
    outlook = _outlook(opened)
    assert outlook.cost(Wish("m1", None, "cuda:9")) == 0
    assert outlook.cost(Wish("m1", None, None, RefitAgentError(detail="x"))) == 0
    with pytest.raises(RefitAgentError):
        ensure_engine(two, "m1", deadline_s=0.001)
    (note,) = (two.parent / "home/state/failures").iterdir()
    note.write_text(note.read_text().replace('"seconds":0.001', '"seconds":900.0'))
    assert outlook.cost(Wish("m1", None, None)) == 0
    assert _outlook(opened, retry_failed=True).cost(Wish("m1", None, None)) > 0


def test_what_has_to_be_fetched_counts_once(two: Path) -> None:
    """For the first engine that needs it; and not at all where it lies in the bundle."""
    document = json.loads((two / "bundle.json").read_text())
    for model in document["models"]:
        model["onnx"]["url"] = "https://cdn.example.com/weights"
    (two / "bundle.json").write_text(json.dumps(document))
    opened = Bundle.open(two)
    here, away = Wish("m1", None, None), Wish("m2", None, None)
    (two / document["models"][1]["onnx"]["path"]).unlink()
    outlook = _outlook(opened)
    usual, first, second = outlook.cost(here), outlook.cost(away), outlook.cost(away)
    assert first == pytest.approx(2.5 * usual) and second == pytest.approx(usual)
