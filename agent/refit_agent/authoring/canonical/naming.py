"""Names for weights that are made top-level initializers: unique in every scope, the same on every run."""

from __future__ import annotations

from collections.abc import Iterable

from refit_agent.weight_map.families import BATCH_NORM, NODE_INDEX, REFITTABLE, SHARED

# What TensorRT's parser calls weights that it makes itself: an initializer of such a name would be taken for one.
_OF_THE_PARSER = (SHARED, BATCH_NORM, REFITTABLE, NODE_INDEX)
_PREFIX = "weight."


def is_the_parsers(name: str) -> bool:
    """Whether TensorRT's parser could give this name to a weight of its own making."""
    return name.startswith(_OF_THE_PARSER)


class Names:
    """The names of a model's tensors, in all scopes together.

    ``taken`` are those that no weight may get.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = {"", *taken}
        self._next: dict[str, int] = {}

    def keep_or_fresh(self, name: str) -> str:
        """``name`` if nothing else has it and it looks like no name of the parser, otherwise a new one like it.

        A new name is ``name`` and the first free number of .1, .2, ...; it depends on the order of
        the calls, and on nothing else.
        """
        base = _PREFIX + name if is_the_parsers(name) or not name else name
        found = base
        number = self._next.get(base, 0)
        while found in self._taken:
            number += 1
            found = f"{base}.{number}"
        self._next[base] = number
        self._taken.add(found)
        return found

    def let_go(self, name: str) -> None:
        """Say that the tensor of this name is gone from every scope."""
        if name:
            self._taken.discard(name)
