"""Which engines a `refit-agent provision` is for, and which of them are there already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from refit_agent import paths
from refit_agent.bundle import Bundle
from refit_agent.cache.store import Store
from refit_agent.errors import RefitAgentError
from refit_agent.failures import Failures
from refit_agent.gpu.detect import detect
from refit_agent.keys import attempt_context, engine_facts, engine_key
from refit_agent.manifest import Engine, FileRef, Model
from refit_agent.provision import foreign_code
from refit_agent.selection import Candidate, select
from refit_agent.settings import DEFAULT_DEADLINE_S

ALL_TARGETS = "all"
#: What an engine of no size takes, in bytes of one that has a size: a worker that starts, opens and checks. (An
#: H100 took 0.8 s for an engine of 2.6 MB and 1.3 s more for every 100 MB.)
_START_BYTES = 64e6
#: As in `refit_agent.progress`, where weights are fetched that takes this share of the whole.
_FETCH_SHARE = 0.6


class Wish(NamedTuple):
    """One engine to provide; ``fault`` says why that cannot even be tried."""

    model: str
    profile: str | None
    target: str | None
    fault: RefitAgentError | None = None


def wishes(
    bundle: Bundle, models: Sequence[Model], profile: str | None, all_profiles: bool, target: str | None
) -> Iterator[Wish]:
    """What to provide of the models; only ``target`` "all" needs a look at the machine."""
    for model in models:
        for name in (model.profiles() or (None,)) if all_profiles else (profile,):
            try:
                targets = _distinct_gpus(bundle, model, name) if target == ALL_TARGETS else [target]
            except RefitAgentError as error:
                yield Wish(model.name, name, target, error)
                continue
            for one in targets:
                yield Wish(model.name, name, one)


def _distinct_gpus(bundle: Bundle, model: Model, profile: str | None) -> list[str | None]:
    """One target for each kind of GPU that the model has an engine for; [None] (the best) if there is none."""
    machine = detect()
    kinds: dict[tuple[str, str], str] = {}
    for gpu in machine.gpus:
        kinds.setdefault((gpu.name, gpu.compute_capability), f"cuda:{gpu.index}")
    fitting = [t for t in kinds.values() if select(bundle.manifest, model, profile, machine, t).candidates]
    return [*fitting] or [None]


class Outlook:
    """What is to be done for the wishes of one call, before any of it is done. An estimate: others are at work in
    the same cache."""

    def __init__(self, bundle: Bundle, *, own_weights: bool, retry_failed: bool, deadline_s: float | None) -> None:
        self._bundle = bundle
        self._own_weights = own_weights
        self._retry_failed = retry_failed
        self._deadline_s = DEFAULT_DEADLINE_S if deadline_s is None else deadline_s
        self._fetched: set[str] = set()

    def is_ready(self, wish: Wish) -> bool:
        """Whether the engine is in the cache. Never with own weights: they would have to be hashed to know."""
        first = self._first(wish)
        return first is not None and first[1]

    def cost(self, wish: Wish) -> float:
        """What the wish will take, in bytes of engine; 0 for one that is a hit or will fail at once.

        A file that several wishes need to be fetched counts for the first that is asked about.
        """
        first = self._first(wish)
        if first is None or first[1]:
            return 0.0
        engine, model = first[0].engine, self._bundle.model(wish.model)
        cost = _START_BYTES + _finished_bytes(engine, model)
        absent = {ref.sha256 for ref in model.weight_files_of(engine) if self._is_elsewhere(ref)} - self._fetched
        self._fetched |= absent
        return cost / (1 - _FETCH_SHARE) if absent else cost

    def _first(self, wish: Wish) -> tuple[Candidate, bool] | None:
        """The candidate that `ensure_engine` will end with or try first, and whether it is in the cache."""
        if wish.fault is not None:
            return None
        home, model = paths.home(), self._bundle.model(wish.model)
        machine = detect(home=home)
        try:
            selection = select(self._bundle.manifest, model, wish.profile, machine, wish.target)
        except RefitAgentError:
            return None
        store, failures = Store(home.cache), Failures(home.state)
        for candidate in selection.candidates:
            if foreign_code(candidate, self._bundle) is not None:
                continue
            if self._own_weights:
                return candidate, False
            key = engine_key(engine_facts(candidate, model, selection.profile, machine))
            found = store.lookup(key, touch=False)
            if isinstance(found, tuple):
                found[2].close()
                return candidate, True
            context = attempt_context(candidate, model, selection.profile)
            if self._retry_failed or failures.recall(key, context, self._deadline_s) is None:
                return candidate, False
        return None

    def _is_elsewhere(self, ref: FileRef) -> bool:
        if ref.url is None:
            return False
        try:
            self._bundle.locate(ref)
        except RefitAgentError:
            return True
        return False


def _finished_bytes(engine: Engine, model: Model) -> int:
    size = sum(plan.plan_size for plan in engine.plans)
    return size if engine.strip != "plan" else size + sum(ref.size for ref in model.weight_files_of(engine))
