"""One question to the naming rules, and the way from possible origins to the one source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from refit_agent.weight_map.families import Generation
from refit_agent.weight_map.origins import Origin
from refit_agent.weight_map.parsed import Walk
from refit_agent.weight_map.sources import (
    MisfitError,
    NoSourceError,
    Prototype,
    RefusedError,
    SeveralSourcesError,
    WeightSource,
)


@dataclass
class Request:
    """What a plan wants, of which model, built by which parser.

    Attributes:
        wanted: every engine name with its prototype.
        walk: the parser's walk over the model.
        generation: the parser's generation.
        explicit: sources that the manifest gives; they also pin the order of numbered names.
    """

    wanted: Mapping[str, Prototype]
    walk: Walk
    generation: Generation
    explicit: Mapping[str, WeightSource]
    _fits: dict[tuple[Origin, Prototype], bool] = field(default_factory=dict)

    def fits(self, origin: Origin, name: str) -> bool:
        """Whether ``origin`` can be what ``name`` stands for, by type, count and the explicit map."""
        pinned = self.explicit.get(name)
        if pinned is not None:
            try:
                source = origin.source(name, self.wanted[name], self.generation)
            except RefusedError:
                return False
            return same_making(source, pinned)
        key = (origin, self.wanted[name])  # the origin itself: an id could be given to another one
        if key not in self._fits:
            try:
                origin.source(name, self.wanted[name], self.generation)
                self._fits[key] = True
            except MisfitError:
                self._fits[key] = False
            except RefusedError:
                self._fits[key] = True  # possible, only not computable
        return self._fits[key]


@dataclass
class Readings:
    """What a rule says about the names it knows: possible origins, or why there are none."""

    origins: dict[str, tuple[Origin, ...]] = field(default_factory=dict)
    refusals: dict[str, RefusedError] = field(default_factory=dict)

    def refuse(self, names: Sequence[str], error: RefusedError) -> None:
        self.refusals.update((name, error) for name in names)

    def contradict(self, request: Request, names: Sequence[str], by_place: Sequence[Origin], reason: str) -> None:
        """Refuse all of ``names``, which no complete matching explains.

        Where there are as many origins as names, those that do not fit by their place are refused as
        misfits, so that the reader learns which; no name gets a source.
        """
        misfits: dict[str, RefusedError] = {}
        if len(by_place) == len(names):
            for name, origin in zip(names, by_place, strict=True):
                try:
                    origin.source(name, request.wanted[name], request.generation)
                except RefusedError as e:
                    if isinstance(e, MisfitError):
                        misfits[name] = e
        self.refuse(names, SeveralSourcesError(reason) if misfits else NoSourceError(reason))
        self.refusals.update(misfits)


def same_making(first: WeightSource, second: WeightSource) -> bool:
    """Whether two sources are made from the same tensors in the same way."""
    plain = ("identity", "cast")
    same_way = first.transform == second.transform or (first.transform in plain and second.transform in plain)
    return same_way and first.made_of == second.made_of and bool(first.made_of)


def choose(request: Request, name: str, origins: Sequence[Origin]) -> WeightSource:
    """The source for ``name`` if its possible ``origins`` agree; compares bytes only where there are several.

    Raises:
        MisfitError: none of them fits the prototype.
        SeveralSourcesError: more than one is possible, and their bytes differ or are not known.
        NoSourceError: the only one has no known value.
    """
    sources: list[WeightSource] = []
    misfits: list[RefusedError] = []
    unknown: list[RefusedError] = []
    for origin in origins:
        try:
            sources.append(origin.source(name, request.wanted[name], request.generation))
        except MisfitError as e:
            misfits.append(e)
        except RefusedError as e:
            unknown.append(e)
    if not sources:
        raise (unknown or misfits)[0]
    different = [s for s in sources[1:] if not same_making(s, sources[0])]
    if unknown or any(not _same_bytes(s, sources[0]) for s in different):
        words = [s.words for s in sources] + [str(e) for e in unknown]
        raise SeveralSourcesError("it can be " + " or ".join(dict.fromkeys(words)))
    return sources[0]


def _same_bytes(first: WeightSource, second: WeightSource) -> bool:
    return first.dtype == second.dtype and first.array().tobytes() == second.array().tobytes()
