"""Many clients of one service, each a process: how long a hit takes them, and how many there are in all.

Beside the service's hits stand those that the same processes find in the cache themselves, as `ensure_engine` does, and
look-ups by huggingface_hub. All share this machine's cores with the service.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.load import Load, Opener, Typical, load, typical_load
from bench.many_engines import HUB_LOOK, HubCache, hub_lookups
from bench.measured import OURS, Bound, Findings, Row, Way
from bench.service_process import private_bytes, service
from refit_agent import ServiceClient, ensure_engine
from refit_agent.authoring.demo_bundle import write_demo_bundle
from refit_agent.client.messages import EnsureRequest

PART = "clients"
PACED, FLAT_OUT = "a hit, 2,000 asked for a second in all", "hits a second in all, no pauses"
SERVICE, IN_PROCESS = f"{OURS}, from the service", f"{OURS}, in the process"
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_QUICK = (1, 8)
_ROUNDS = 7
#: What the service has to bear in all, and with how many clients.
HITS_PER_S, CLIENTS = 2000, 32
MEDIAN_S, LATE_S = 1e-3, 3e-3
_MEMORY = "the service, right after the hits"


def measure(findings: Findings, work: Path, *, quick: bool) -> None:
    """Every number of clients, paced and without pauses."""
    bundle = str(work / "demo")
    model = write_demo_bundle(bundle).models[0].name
    hub = HubCache(work / "hub")
    hub.grow(1)
    seconds = 0.5 if quick else 2.0
    with service() as process:
        ensure_engine(bundle, model, service=True).close()
        ways: dict[str, Opener] = {
            SERVICE: functools.partial(by_service, bundle, model),
            IN_PROCESS: functools.partial(in_process, bundle, model),
        }
        if hub_lookups(hub.root):
            ways[HUB_LOOK] = functools.partial(by_hub, hub)
        for clients in _QUICK if quick else _COUNTS:
            paced = typical_load(ways[SERVICE], clients, clients / HITS_PER_S, seconds / 2, 1 if quick else _ROUNDS)
            memory = private_bytes(process)
            findings.add(_row(PACED, clients, {SERVICE: paced}, memory))
            # The others are not held up by anything that they share but the cores: a shorter time is enough.
            flat = {name: load(ways[name], clients, 0.0, seconds if name == SERVICE else seconds / 2) for name in ways}
            findings.add(_row(FLAT_OUT, clients, flat, private_bytes(process)))
    _bounds(findings, _QUICK[-1] if quick else CLIENTS)


def by_service(bundle: str, model: str) -> Callable[[], object]:
    """One client's connection; it keeps it."""
    client, request = ServiceClient(), EnsureRequest(bundle=bundle, model=model)
    return lambda: client.ensure(request)


def in_process(bundle: str, model: str) -> Callable[[], object]:
    """A look into the cache, without the service."""
    return lambda: ensure_engine(bundle, model).close()


def by_hub(hub: HubCache) -> Callable[[], object]:
    """A look into the other cache."""
    look, repo = hub_lookups(hub.root)[HUB_LOOK], hub.repos[0]
    return lambda: look(repo)


def _row(what: str, clients: int, loads: Mapping[str, Load | Typical], memory: int) -> Row:
    paced = what == PACED
    ways = tuple(
        Way(
            name=name,
            value=found.median if paced else found.per_s,
            late=found.late if paced else None,
            private=memory if name == SERVICE else None,
        )
        for name, found in loads.items()
    )
    return Row(
        part=PART, what=what, size=clients, size_unit="clients", unit="s" if paced else "1/s", memory=_MEMORY, ways=ways
    )  # fmt: skip


def _bounds(findings: Findings, clients: int) -> None:
    rows = {row.what: row for row in findings.rows if row.part == PART and row.size == clients}
    paced, flat = rows[PACED].ways[0], rows[FLAT_OUT].ways[0]
    asked = f"{clients} clients that ask {HITS_PER_S:,} times a second in all"
    findings.bounds += [
        Bound(text=f"{asked}: median", value=paced.value, limit=MEDIAN_S, unit="s"),
        Bound(text=f"{asked}: 99 %", value=paced.late or 0.0, limit=LATE_S, unit="s"),
        Bound(text=f"{clients} clients without pauses", value=flat.value, limit=HITS_PER_S, unit="1/s", least=True),
    ]
