"""The real lean runtime on a real GPU: it loads, and refuses what it cannot run in our words."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu import sample_bundles as samples
from refit_agent import ensure_engine
from refit_agent.errors import PlanRefused

lean = pytest.importorskip("tensorrt_lean", reason="tensorrt-lean is not installed")


def test_the_lean_runtime_refuses_a_plan_of_8_6_in_our_words(tmp_path: Path) -> None:
    """The module loads, creates a Runtime, and what it cannot read becomes plan-refused with its reason."""
    major = int(lean.__version__.split(".")[0])
    samples.link_model(tmp_path, "tiny")
    # Declared as a plan that selection lets through, so that the runtime itself has to say no.
    plan = samples.gpu_engine(tmp_path, "tiny", "none", version_compatible=True)
    if major >= 11:
        plan = _as_built_with(tmp_path, plan, (10, 0, 0, 0))
    samples.write_bundle(tmp_path, "tiny", (plan,), golden=False)
    with pytest.raises(PlanRefused) as caught:
        ensure_engine(tmp_path, "tiny")
    print(f"\n{lean.__version__}: {caught.value}")
    assert caught.value.facts["runtime"] == "tensorrt_lean"
    assert caught.value.facts["detail"] != "TensorRT gave no reason"


def _as_built_with(root: Path, plan: samples.Engine, version: tuple[int, ...]) -> samples.Engine:
    """The same plan with another builder's version in its header, honestly hashed."""
    from refit_agent.authoring.write_bundle import file_ref

    data = bytearray((root / plan.path).read_bytes())
    data[24:28] = bytes(version)
    (root / plan.path).write_bytes(data)
    ref = file_ref(str(root), plan.path)
    return samples.gpu_engine(
        root,
        "tiny",
        "none",
        version_compatible=True,
        built_with=".".join(map(str, version)),
        sha256=ref.sha256,
    )
