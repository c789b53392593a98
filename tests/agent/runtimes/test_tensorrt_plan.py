from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes_tensorrt import FakeTensorRt, plan
from refit_agent.errors import RefitRefused, WeightsMismatch, WeightsUncovered
from refit_agent.plan_header import parse_plan_header
from refit_agent.runtimes.tensorrt_log import MessageSink, make_logger
from refit_agent.runtimes.tensorrt_plan import PLAN_NAME, OpenedEngine
from refit_agent.weight_map import Prototype

WEIGHTS = {"a": ("FLOAT", 4), "b": ("HALF", 2)}


def opened(data: bytes, module: FakeTensorRt | None = None) -> OpenedEngine:
    module = module or FakeTensorRt()
    sink = MessageSink()
    logger = make_logger(module, sink)
    header = parse_plan_header(data, len(data), "p")
    return OpenedEngine(module, module.engine(data, logger), header, logger, sink, 3)


def floats(*values: float) -> Any:
    return np.array(values, np.float32)


def halves(*values: float) -> Any:
    return np.array(values, np.float16)


def set_both(engine: OpenedEngine) -> None:
    engine.wanted()
    engine.set_weight("a", "float32", floats(1, 2, 3, 4))
    engine.set_weight("b", "float16", halves(5, 6))


def written(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(path.read_bytes()[28:])
    return body


def ignore(done: int, total: int) -> None:
    del done, total


def test_all_weights_are_wanted_with_their_prototypes() -> None:
    """TensorRT 10 tells type and count, named as in ONNX."""
    weights = {"a": ("FLOAT", 4), "b": ("BF16", 2), "c": ("INT4", 3), "d": ("FP8", 1)}
    assert opened(plan(weights)).wanted() == {
        "a": Prototype("float32", 4),
        "b": Prototype("bfloat16", 2),
        "c": Prototype("int4", 3),
        "d": Prototype("float8e4m3fn", 1),
    }


def test_tensorrt_8_tells_names_alone() -> None:
    """It has no prototypes, and nothing is made up in their place."""
    engine = opened(plan(WEIGHTS), FakeTensorRt(version="8.6.0"))
    assert engine.wanted() == {"a": Prototype(None, None), "b": Prototype(None, None)}


def test_weights_without_a_name_cannot_be_covered() -> None:
    """They are an error, with their number, and no name that somebody might look for."""
    engine = opened(plan({"a": ("FLOAT", 1), None: ("FLOAT", 1), "": ("FLOAT", 1)}))
    with pytest.raises(WeightsUncovered, match="without a name") as info:
        engine.wanted()
    assert info.value.facts["count"] == 2


def test_refit_puts_the_bytes_in(tmp_path: Path) -> None:
    """What was set is what the written plan holds, and the file is described as it is."""
    engine = opened(plan(WEIGHTS))
    set_both(engine)
    engine.refit()
    progress: list[tuple[int, int]] = []
    (file,) = engine.write(str(tmp_path), lambda done, total: progress.append((done, total)))
    assert file.name == PLAN_NAME
    assert file.size == (tmp_path / PLAN_NAME).stat().st_size
    assert progress[-1] == (file.size, file.size)
    again = FakeTensorRt().engine((tmp_path / PLAN_NAME).read_bytes())
    assert again.values == {"a": floats(1, 2, 3, 4).tobytes(), "b": halves(5, 6).tobytes()}


def test_tensorrt_8_takes_arrays(tmp_path: Path) -> None:
    """Its Weights knows no addresses, and it has no flags for the writing."""
    module = FakeTensorRt(version="8.6.0")
    engine = opened(plan(WEIGHTS, stripped=False), module)
    set_both(engine)
    engine.refit()
    engine.write(str(tmp_path), ignore)
    assert module.engine((tmp_path / PLAN_NAME).read_bytes()).values["b"] == halves(5, 6).tobytes()
    assert module.state.configs == []


def test_tensorrt_writes_no_weights_unless_it_is_told(tmp_path: Path) -> None:
    """The fake does as TensorRT does: the plain serialisation of a stripped engine has no weights, ours has."""
    module = FakeTensorRt()
    engine = opened(plan(WEIGHTS), module)
    set_both(engine)
    engine.refit()
    plain = bytes(module.state.engines[0].serialize())
    assert json.loads(plain[28:])["values"] == {}
    engine.write(str(tmp_path), ignore)
    assert set(written(tmp_path / PLAN_NAME)["values"]) == {"a", "b"}
    assert written(tmp_path / PLAN_NAME)["stripped"] is False


@pytest.mark.parametrize("asked", [False, True])
def test_the_written_plan_is_refittable_only_on_request(asked: bool, tmp_path: Path) -> None:
    """A host app that refits by itself asks for it in the manifest; nobody else pays for it."""
    module = FakeTensorRt()
    engine = opened(plan(WEIGHTS), module)
    engine._keep_refittable = asked
    set_both(engine)
    engine.refit()
    engine.write(str(tmp_path), ignore)
    assert written(tmp_path / PLAN_NAME)["refittable"] is asked


def test_a_weight_never_set_is_refused_where_tensorrt_would_succeed() -> None:
    """TensorRT reports success and nothing missing; we name the weight, and do not even ask it."""
    module = FakeTensorRt()
    engine = opened(plan(WEIGHTS), module)
    engine.wanted()
    engine.set_weight("a", "float32", floats(1, 2, 3, 4))
    assert engine._refitter.refit_cuda_engine() is True
    assert engine._refitter.get_missing_weights() == []
    with pytest.raises(RefitRefused, match="weights were not set: b"):
        engine.refit()
    assert module.state.refits == 1


def test_weights_nobody_asked_for_are_counted_all_the_same() -> None:
    """The refit does not rely on `wanted` having been called."""
    engine = opened(plan(WEIGHTS))
    with pytest.raises(RefitRefused, match="weights were not set: a, b"):
        engine.refit()


@pytest.mark.parametrize(
    ("dtype", "array"),
    [("float32", floats(1, 2, 3)), ("float16", halves(1, 2, 3, 4)), ("int32", np.arange(4, dtype=np.int32))],
)
@pytest.mark.parametrize("version", ["10.16.1.11", "8.6.0"])
def test_another_type_or_count_is_refused(dtype: str, array: Any, version: str) -> None:
    """The weight is named, whoever notices: we by the prototype, or TensorRT."""
    engine = opened(plan(WEIGHTS), FakeTensorRt(version=version))
    with pytest.raises(WeightsMismatch, match="a") as info:
        engine.set_weight("a", dtype, array)
    assert info.value.facts["name"] == "a"


def test_tensorrt_s_reason_for_a_refusal_is_told() -> None:
    """What it logged stands in the error."""
    engine = opened(plan(WEIGHTS))
    with pytest.raises(WeightsMismatch, match="count or type mismatch"):
        engine.set_weight("a", "int32", np.arange(4, dtype=np.int32))


def test_tensorrt_is_never_sent_behind_the_end_of_an_array() -> None:
    """It gets an address and the prototype's count: an array that is too short for it is refused before."""
    engine = opened(plan({"a": ("FLOAT", 1000)}))
    with pytest.raises(WeightsMismatch, match="16 bytes do not hold 1000 x float32"):
        engine.set_weight("a", "float32", floats(1, 2, 3, 4))


def test_packed_types_are_counted_in_elements() -> None:
    """Three 4-bit numbers lie in two bytes."""
    module = FakeTensorRt()
    engine = opened(plan({"q": ("INT4", 3)}), module)
    engine.set_weight("q", "int4", np.array([0x21, 0x03], np.uint8))
    engine.refit()
    assert module.state.engines[0].values["q"] == b"\x21\x03"


@pytest.mark.parametrize(("version", "dtype"), [("8.6.0", "bfloat16"), ("10.16.1.11", "float64"), ("10.16.1.11", "x")])
def test_a_type_that_this_tensorrt_lacks_is_named(version: str, dtype: str) -> None:
    """In place of an AttributeError or a wrong reading of the bytes."""
    engine = opened(plan(WEIGHTS), FakeTensorRt(version=version))
    with pytest.raises(WeightsMismatch, match=f"no type for {dtype}"):
        engine.set_weight("a", dtype, np.zeros(4, np.uint16))


def test_arrays_live_until_the_refit_and_no_longer() -> None:
    """TensorRT reads them at the refit, by address; afterwards their memory is free for the finished plan."""
    engine = opened(plan({"a": ("FLOAT", 4)}))
    array = floats(1, 2, 3, 4)
    alive = weakref.ref(array)
    engine.set_weight("a", "float32", array)
    del array
    gc.collect()
    assert alive() is not None
    engine.refit()
    gc.collect()
    assert alive() is None


def test_close_lets_go_of_engine_and_arrays() -> None:
    """Also of a plan that was never refitted; closing twice does no harm."""
    module = FakeTensorRt()
    engine = opened(plan(WEIGHTS), module)
    array = floats(1, 2, 3, 4)
    engine.set_weight("a", "float32", array)
    gone = weakref.ref(array), weakref.ref(module.state.engines.pop())
    del array
    engine.close()
    engine.close()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"no_refit": 1}, "refit went wrong"),
        ({"missing": ["c", "d"]}, "weights are missing: c, d"),
        ({"missing": [None, ""]}, r"weights are missing: \(unnamed\), \(unnamed\)"),
    ],
)
def test_a_refit_that_fails_says_why(faults: dict[str, Any], words: str) -> None:
    """TensorRT's log, or the names that it misses."""
    engine = opened(plan(WEIGHTS), FakeTensorRt(**faults))
    set_both(engine)
    with pytest.raises(RefitRefused, match=words):
        engine.refit()


def test_a_plan_that_cannot_be_serialised_says_why(tmp_path: Path) -> None:
    """No file is begun."""
    engine = opened(plan(WEIGHTS), FakeTensorRt(no_serialise=1))
    set_both(engine)
    engine.refit()
    with pytest.raises(RefitRefused, match="could not be made: out of memory"):
        engine.write(str(tmp_path), ignore)
    assert list(tmp_path.iterdir()) == []


def test_a_whole_plan_without_refit_is_written_as_it_is(tmp_path: Path) -> None:
    """No Refitter of it can be made; it wants nothing, and its own weights stay."""
    engine = opened(plan(WEIGHTS, stripped=False, refittable=False, values={"a": b"own", "b": b"own"}))
    assert engine.wanted() == {}
    engine.refit()
    engine.write(str(tmp_path), ignore)
    assert set(written(tmp_path / PLAN_NAME)["values"]) == {"a", "b"}


def test_a_refitter_that_cannot_be_made_is_an_error_of_ours() -> None:
    """pybind11 would say that a factory returned nullptr."""
    with pytest.raises(RefitRefused, match="no refitter could be made: the engine is not refittable"):
        opened(plan(WEIGHTS), FakeTensorRt(no_refitter=1))


def test_sources_follow_the_plan_s_own_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header's version and kind choose the naming rules, whatever runtime opens it."""
    from refit_agent.runtimes import tensorrt_plan

    asked: dict[str, Any] = {}
    monkeypatch.setattr(tensorrt_plan, "resolve", lambda wanted, weights, **more: asked.update(more, wanted=wanted))
    engine = opened(plan({"a": ("FLOAT", 1)}, version=(8, 6, 0, 12)))
    engine.sources("weights", {"a": {"from": "b"}})  # type: ignore[arg-type]
    assert asked == {
        "builder": (8, 6, 0, 12),
        "rtx": False,
        "explicit": {"a": {"from": "b"}},
        "wanted": {"a": Prototype("float32", 1)},
    }
    rtx = bytearray(plan({"a": ("FLOAT", 1)}, version=(1, 7, 1, 116)))
    rtx[:4] = b"vtrt"
    opened(bytes(rtx)).sources("weights", None)  # type: ignore[arg-type]
    assert (asked["rtx"], asked["builder"]) == (True, (1, 7, 1, 116))
