"""An ONNX Runtime that is older than the one that made the graph shows that it loads it before anybody gets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, edit, model_of, rehash
from refit_agent import ensure_engine
from refit_agent.errors import PlanRefused

#: Newer than any that the tests run with.
NEWER = {"built_with": "99.0", "min_runtime": "1.18"}


def _made_by(facts: dict[str, str], *, golden: bool) -> Any:
    def change(document: dict[str, Any]) -> None:
        model_of(document)["engines"][0].update(facts)
        if not golden:
            del model_of(document)["golden"]

    return change


@pytest.mark.parametrize(("golden", "check"), [(True, "golden"), (False, "loaded")])
def test_a_graph_of_a_newer_one_is_made_and_loaded(bundle: Path, golden: bool, check: str) -> None:
    edit(bundle, _made_by(NEWER, golden=golden))
    with ensure_engine(bundle, MODEL) as engine:
        assert (engine.hit, engine.check) == (False, check)


@pytest.mark.parametrize(("golden", "before", "after"), [(True, "golden", "golden"), (False, "none", "loaded")])
def test_one_made_without_that_does_not_stand_for_it(bundle: Path, golden: bool, before: str, after: str) -> None:
    """The same plan under a manifest that promised less was published unloaded."""
    edit(bundle, _made_by({}, golden=golden))
    with ensure_engine(bundle, MODEL) as engine:
        assert engine.check == before
    edit(bundle, lambda document: model_of(document)["engines"][0].update(NEWER))
    with ensure_engine(bundle, MODEL) as engine:
        assert (engine.hit, engine.check) == (False, after)


def test_what_it_has_no_kernel_for_is_not_published(bundle: Path) -> None:
    """An operator that only a newer release knows, in a bundle without golden data."""
    plan = bundle / "plans" / "mlp.cpu"
    data = plan.read_bytes()
    assert data.count(b"Relu") >= 1
    plan.write_bytes(data.replace(b"Relu", b"Rulu"))
    edit(bundle, _made_by(NEWER, golden=False))
    edit(bundle, lambda document: model_of(document)["engines"][0].pop("plan_sha256"))
    rehash(bundle)
    with pytest.raises(PlanRefused, match="Rulu") as caught:
        ensure_engine(bundle, MODEL)
    assert caught.value.hint == "A newer ONNX Runtime made it: pip install -U 'refit-agent[cpu]'"
