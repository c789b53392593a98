"""The service under its systemd unit's filters, with a worker that opens the GPU: nothing that the driver needs is refused.

On a machine with systemd `tests/packaging/test_units_live.py` writes them to the file that REFIT_AGENT_KEEP_UNIT_FILTERS
names; here REFIT_AGENT_UNIT_FILTERS names it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import unit_filters
from gpu import sample_bundles as samples
from gpu.served import Served
from refit_agent import ensure_engine

pytest.importorskip("tensorrt", reason="the sample engines need TensorRT 8.6.0, exactly")

FILTERS = os.environ.get("REFIT_AGENT_UNIT_FILTERS", "")
pytestmark = pytest.mark.skipif(not FILTERS, reason="REFIT_AGENT_UNIT_FILTERS names no file with the unit's filters")


def _filters(status: str) -> int:
    """How many a process has: a container may have put one on all of its own."""
    return int(status.partition("Seccomp_filters:")[2].split()[0])


@pytest.fixture
def confined(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("REFIT_AGENT_WARM_BUSY_PERCENT", "101")
    running = Served(own_home, (sys.executable, unit_filters.__file__, "under", FILTERS))
    yield running
    running.client.close()
    running.process.terminate()
    assert running.process.wait(20) == 0


def test_a_worker_under_the_filters_refits_and_checks_on_the_gpu(confined: Served, tmp_path: Path) -> None:
    """For a waiting app and in the background; the filters are on the service, and every worker has inherited them."""
    status = Path(f"/proc/{confined.process.pid}/status").read_text()
    count = len(json.loads(Path(FILTERS).read_text()))
    assert count >= 6 and _filters(status) == count + _filters(Path("/proc/self/status").read_text())
    assert "NoNewPrivs:\t1\n" in status
    samples.link_model(tmp_path / "a", "tiny")
    asked = samples.write_bundle(tmp_path / "a", "tiny", (samples.gpu_engine(tmp_path / "a", "tiny"),))
    with ensure_engine(asked, "tiny", service=True) as engine:
        assert (engine.hit, engine.target, engine.check) == (False, "cuda:0", "golden")
    samples.link_model(tmp_path / "b", "resnet50")
    warm = samples.write_bundle(tmp_path / "b", "resnet50", (samples.gpu_engine(tmp_path / "b", "resnet50"),))
    confined.client.add_bundle(warm)
    confined.wait_for_engines(2)
    confined.wait_idle()
    assert confined.client.status().warm.failures == ()
    with ensure_engine(warm, "resnet50") as engine:
        assert (engine.hit, engine.runtime, engine.target) == (True, "tensorrt", "cuda:0")
    assert confined.client.gpus().gpus, "NVML answers under the filters, too"
