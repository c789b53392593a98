"""The client's records and the service's are two sides of one protocol: what one writes the other reads as it was meant."""

from __future__ import annotations

import inspect
import os
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.inspect import type_info

from refit_agent.client import answers, calls, messages
from refit_service import protocol

#: The client's record -> the service's, for what the service says.
ANSWERS: dict[type[msgspec.Struct], type[msgspec.Struct]] = {
    messages.ServiceLease: protocol.LeaseRecord,
    messages.Why: protocol.Why,
    messages.EngineResult: protocol.EngineResult,
    messages.Problem: protocol.Problem,
    messages.Step: protocol.ProgressEvent,
    messages.Finished: protocol.ResultEvent,
    messages.Failed: protocol.ErrorEvent,
    messages.BundleRecord: protocol.BundleRecord,
    messages.BundleRecords: protocol.BundleList,
    messages.JobStatus: protocol.JobRecord,
    messages.WarmStatus: protocol.WarmRecord,
    messages.CacheStatus: protocol.CacheUse,
    messages.ErrorNote: protocol.SeenError,
    messages.PageLink: protocol.PageLink,
    messages.Status: protocol.Status,
}
#: What the service takes -> the call that says it, from the same values.
REQUESTS: dict[type[msgspec.Struct], Any] = {
    protocol.RenewRequest: lambda ttl_s: calls.renew("lease", ttl_s),
    protocol.RegisterRequest: calls.add_bundle,
    protocol.VerifyRequest: lambda keys: calls.verify_cache(None if keys is None else list(keys)),
    protocol.PruneRequest: lambda max_bytes: calls.prune_cache(max_bytes),
}
_TEXT = st.characters(codec="utf-8")
_SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(_TEXT, max_size=8)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Whatever a field of that type may hold, within its limits."""
    name = type(kind).__name__
    if name == "StructType":
        return st.fixed_dictionaries({f.name: values(f.type) for f in kind.fields}).map(lambda v: kind.cls(**v))
    if name == "UnionType":
        return st.one_of([values(one) for one in kind.types])
    if name == "Metadata":
        return values(kind.type)
    if name == "VarTupleType":
        return st.lists(values(kind.item_type), max_size=2).map(tuple)
    if name == "DictType":
        return st.dictionaries(values(kind.key_type), values(kind.value_type), max_size=2)
    if name == "StrType":
        if kind.pattern:
            longest = kind.max_length or 100
            return st.from_regex(kind.pattern, fullmatch=True, alphabet=_TEXT).filter(lambda t: len(t) <= longest)
        return st.text(_TEXT, min_size=kind.min_length or 0, max_size=20)
    if name == "IntType":
        return st.integers(-(2**53) if kind.ge is None else kind.ge, 2**53 if kind.le is None else kind.le)
    if name == "FloatType":
        least = kind.gt if kind.ge is None else kind.ge
        return st.floats(least, kind.le, exclude_min=kind.gt is not None, allow_nan=False, allow_infinity=False)
    plain = {"BoolType": st.booleans(), "NoneType": st.none(), "AnyType": _SCALARS}
    return plain[name]


def records(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    return values(type_info(kind))


def structs(module: Any) -> set[type[msgspec.Struct]]:
    found = {kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__}
    return {kind for kind in found if issubclass(kind, msgspec.Struct)}


def test_every_record_of_the_client_is_compared() -> None:
    """A new one is to be named here, with what the service calls it."""
    assert structs(messages) == {*ANSWERS, messages.EnsureRequest}


def test_every_request_that_the_service_takes_is_compared() -> None:
    """Its records are answers, requests, or parts of them that no client of ours looks at."""
    unread = {protocol.Refused, protocol.WarmFailure, protocol.Health}
    assert structs(protocol) == {*ANSWERS.values(), *REQUESTS, protocol.EnsureRequest, *unread}


def test_protocol_and_content_type_are_the_same() -> None:
    """Both sides name them."""
    assert messages.PROTOCOL == protocol.PROTOCOL
    assert answers.STREAM_TYPE == protocol.STREAM_TYPE


def names(kind: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize("ours", ANSWERS, ids=lambda kind: kind.__name__)
def test_every_field_that_the_client_knows_is_the_services(ours: type[msgspec.Struct]) -> None:
    """One that nobody sends would be its default for ever."""
    theirs = ANSWERS[ours]
    assert names(ours) <= names(theirs)
    assert ours.__struct_config__.tag == theirs.__struct_config__.tag
    assert ours.__struct_config__.tag_field == theirs.__struct_config__.tag_field
    assert not theirs.__struct_config__.omit_defaults


def within(part: Any, whole: Any) -> bool:
    """Whether all that the client made of an answer is what the answer said; it may leave fields out."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(name in whole and within(value, whole[name]) for name, value in part.items())
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) == len(whole) and all(map(within, part, whole))
    return type(part) is type(whole) and bool(part == whole)


@pytest.mark.parametrize("ours", ANSWERS, ids=lambda kind: kind.__name__)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_the_service_says_the_client_understands(ours: type[msgspec.Struct], data: st.DataObject) -> None:
    """Every value that the service's record can hold, bit for bit."""
    said = msgspec.json.encode(data.draw(records(ANSWERS[ours])))
    heard = msgspec.json.decode(said, type=ours)
    assert within(msgspec.json.decode(msgspec.json.encode(heard)), msgspec.json.decode(said))


@settings(max_examples=100, deadline=None)
@given(records(protocol.ProgressEvent) | records(protocol.ResultEvent) | records(protocol.ErrorEvent))
def test_a_line_of_the_stream_is_the_event_that_was_meant(event: msgspec.Struct) -> None:
    """The client tells the three apart."""
    heard = messages.event_decoder.decode(msgspec.json.encode(event))
    assert ANSWERS[type(heard)] is type(event)


@settings(max_examples=100, deadline=None)
@given(records(protocol.EnsureRequest))
def test_what_the_client_wants_the_service_understands(meant: protocol.EnsureRequest) -> None:
    """With all fields set, and with none but those that must be."""
    ours = messages.EnsureRequest(**msgspec.structs.asdict(meant))
    assert msgspec.json.decode(msgspec.json.encode(ours), type=protocol.EnsureRequest) == meant
    least = messages.EnsureRequest(bundle=meant.bundle, model=meant.model)
    heard = msgspec.json.decode(msgspec.json.encode(least), type=protocol.EnsureRequest)
    assert heard == protocol.EnsureRequest(bundle=meant.bundle, model=meant.model)
    assert names(messages.EnsureRequest) == names(protocol.EnsureRequest)


@pytest.mark.parametrize("theirs", REQUESTS, ids=lambda kind: kind.__name__)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_other_requests_are_understood_too(theirs: type[msgspec.Struct], data: st.DataObject) -> None:
    """As each call writes them."""
    meant = data.draw(records(theirs))
    if isinstance(meant, protocol.RegisterRequest):
        # The call makes a path absolute and plain.
        meant = msgspec.structs.replace(meant, path=os.path.abspath(meant.path))
    call = REQUESTS[theirs](**msgspec.structs.asdict(meant))
    assert msgspec.json.decode(call.body, type=theirs) == meant
