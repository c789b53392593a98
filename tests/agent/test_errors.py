from __future__ import annotations

import pickle
import string

import msgspec
import pytest

from refit_agent import errors
from refit_agent.errors import (
    BundleError,
    DiskFull,
    GpuMemoryShort,
    RefitAgentError,
    UnsafePath,
    error_classes,
    from_wire,
)

CLASSES = sorted(error_classes().values(), key=lambda kind: kind.code)


def _all_classes() -> list[type[RefitAgentError]]:
    found, todo = [], [RefitAgentError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return found


def _fields(kind: type[RefitAgentError]) -> set[str]:
    return {name for text in (kind.sentence, kind.advice) for _, name, _, _ in string.Formatter().parse(text) if name}


def test_codes_are_unique_and_kebab_case() -> None:
    """No two classes share a code, and every code is lower-case words joined by dashes."""
    codes = [kind.code for kind in _all_classes()]
    assert len(codes) == len(set(codes))
    assert all(code.replace("-", "").isalpha() and code == code.lower() for code in codes)


def test_every_class_of_the_tree_is_in_one_place() -> None:
    """Whoever catches an error needs to know one module, and not in which file of it the class stands."""
    ours = {kind.__name__ for kind in CLASSES if kind.__module__.startswith("refit_agent.errors")}
    assert ours | {"error_classes", "from_wire"} == set(errors.__all__)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda k: k.code)
def test_every_error_survives_pickling_and_the_wire(kind: type[RefitAgentError]) -> None:
    """Class, facts, words and hint are the same on the other side."""
    facts: dict[str, object] = {name: f"<{name}-value>" for name in _fields(kind)}
    error = kind(**facts)
    for twin in (pickle.loads(pickle.dumps(error)), from_wire(error.code, error.facts)):
        assert type(twin) is kind
        assert (str(twin), twin.hint, twin.facts) == (str(error), error.hint, error.facts)
    for value in facts.values():
        assert str(value) in str(error) + error.hint


@pytest.mark.parametrize("kind", CLASSES, ids=lambda k: k.code)
def test_every_error_names_an_exit_code_and_its_branch(kind: type[RefitAgentError]) -> None:
    """The exit code of a class is that of its branch of the tree."""
    branch = next((base for base in kind.__mro__ if RefitAgentError in base.__bases__), RefitAgentError)
    assert kind.exit_code == branch.exit_code


def test_a_missing_fact_does_not_hide_the_error() -> None:
    """A fact that was not given shows as its name in angle brackets."""
    assert "<path>" in str(UnsafePath(owner="o", detail="d"))


def test_sizes_are_for_people_in_the_sentence_and_numbers_in_the_facts() -> None:
    """Nobody counts the digits of 2254857830; programs get them all the same."""
    full = DiskFull(path="/d", free_bytes=5 << 20, needed_bytes=2254857830)
    assert str(full) == "The disk that holds /d has 5.0 MiB free, and 2.1 GiB is needed."
    assert full.facts == {"path": "/d", "free_bytes": 5242880, "needed_bytes": 2254857830}
    assert str(DiskFull(path="/d", free_bytes=0, needed_bytes="more")).endswith("has 0 B free, and more is needed.")
    close = DiskFull(path="/d", free_bytes=1 << 30, needed_bytes=(1 << 30) + 1)
    assert "has 1073741824 B free, and 1073741825 B is needed" in str(close), "rounded it would be enough"
    short = GpuMemoryShort(gpu="cuda:0", free_bytes=1 << 30, needed_bytes=3 << 30, short_bytes=2 << 30)
    assert str(short) == "GPU cuda:0 has 1.0 GiB of memory free, and 3.0 GiB is needed: 2.0 GiB short."


_DEEP: object = []
for _ in range(900):
    _DEEP = [_DEEP]


#: JSON that cannot be shown, or not be written again.
HOSTILE: dict[str, object] = {
    "more than a float": 10**400,
    "less than a float": -(10**400),
    "more than 64 bits": 1 << 64,
    "more digits than Python writes": 10**5000,
    "a list of such": [10**5000],
    "a table of such": {"a": {"b": 10**5000}},
    "deep": _DEEP,
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("kind", CLASSES, ids=lambda k: k.code)
def test_what_a_document_carries_never_hides_the_error(kind: type[RefitAgentError], what: str) -> None:
    """A worker or a service may send any JSON: there are words, a hint, and a document of it all the same."""
    fact = HOSTILE[what]
    names = _fields(kind) | {"hint"}
    for name in names:
        facts: dict[str, object] = dict.fromkeys(names, "x")
        error = from_wire(kind.code, facts | {name: fact})
        assert str(error) and error.hint and repr(error) and msgspec.json.encode(error.facts)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    unknown = from_wire("from-the-future", {"a": fact})
    assert "from-the-future" in str(unknown)


def test_the_largest_sizes_are_still_numbers() -> None:
    """Those that a disk could have."""
    full = DiskFull(path="/d", free_bytes=(1 << 63) - 1, needed_bytes=1 << 63)
    assert "9223372036854775807 B free, and 9223372036854775808 B is needed" in str(full)
    assert "a number of 1329 bits" in str(DiskFull(path="x", free_bytes=10**400, needed_bytes=1))


def test_a_fact_may_have_any_name() -> None:
    """Facts that another process names 'self' or 'code' do no harm."""
    assert from_wire("bundle-error", {"self": 1, "code": 2, "detail": "x"}).facts["self"] == 1


def test_an_unknown_code_from_a_newer_process_is_still_an_error_of_ours() -> None:
    """It becomes the base class and names the code."""
    error = from_wire("from-the-future", {"a": 1})
    assert type(error) is RefitAgentError
    assert "from-the-future" in str(error)


def test_a_hint_given_as_a_fact_goes_before_the_class_s_advice() -> None:
    """The caller of the constructor knows better than the class."""
    assert BundleError(detail="x").hint == BundleError.advice
    assert BundleError(detail="x", hint="Do that.").hint == "Do that."
