from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fakes_tensorrt import FakeCuda, FakeTensorRt, output, plan, tensor
from refit_agent.errors import DeviceFailed, RefitError
from refit_agent.runtimes.tensorrt_run import run_engine

VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)
COPY = [tensor("x"), output("y", "x")]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda().install(monkeypatch)


def run(
    io: list[dict[str, Any]], inputs: dict[str, Any] | None, module: FakeTensorRt | None = None
) -> tuple[dict[str, Any], FakeTensorRt]:
    module = module or FakeTensorRt()
    return run_engine(module, module.engine(plan(io=io)), inputs), module


def released(cuda: FakeCuda) -> bool:
    return not cuda.live and not cuda.streams and not cuda.retained


def test_outputs_come_back_and_nothing_stays_on_the_gpu(cuda: FakeCuda) -> None:
    """The run is waited for, then copied; its memory and its stream are gone."""
    got, _ = run(COPY, {"x": VALUES})
    assert list(got) == ["y"]
    assert np.array_equal(got["y"], VALUES)
    assert cuda.synchronized == [77]
    assert released(cuda)


@pytest.mark.parametrize(
    "order", [np.asfortranarray(VALUES), VALUES[:, ::-1][:, ::-1], np.repeat(VALUES, 2, 1)[:, ::2]]
)
def test_inputs_may_lie_in_any_order(cuda: FakeCuda, order: Any) -> None:
    """They are copied as the engine reads them."""
    got, _ = run(COPY, {"x": order})
    assert np.array_equal(got["y"], VALUES)


def test_inputs_that_the_engine_does_not_have_are_left_out(cuda: FakeCuda) -> None:
    """An engine may have lost one that had no use."""
    got, _ = run(COPY, {"x": VALUES, "unused": VALUES})
    assert list(got) == ["y"]


def test_a_missing_golden_input_is_named(cuda: FakeCuda) -> None:
    """With those that are there."""
    with pytest.raises(RefitError, match=r"no input 'x'; it has z\."):
        run(COPY, {"z": VALUES})


def test_a_golden_input_of_another_type_is_refused(cuda: FakeCuda) -> None:
    """Its bytes would be taken for something else."""
    with pytest.raises(RefitError, match="'x' is float64, and the engine takes float32"):
        run(COPY, {"x": VALUES.astype(np.float64)})


@pytest.mark.parametrize(("rows", "index"), [(2, 0), (5, 1), (9, 2)])
def test_the_first_profile_that_takes_the_input_is_used(cuda: FakeCuda, rows: int, index: int) -> None:
    """And is switched to on the stream of the run."""
    profiles = [((1, 4), (2, 4), (4, 4)), ((5, 4), (6, 4), (8, 4)), ((1, 4), (9, 4), (9, 4))]
    _, module = run([tensor("x", shapes=profiles), output("y", "x")], {"x": np.ones((rows, 4), np.float32)})
    (context,) = module.state.contexts
    assert (context.profile, context.profile_stream) == (index, 77 if index else None)


@pytest.mark.parametrize("shape", [(9, 4), (2, 5), (2, 4, 1), (0, 4)])
def test_an_input_that_no_profile_takes_is_refused(cuda: FakeCuda, shape: tuple[int, ...]) -> None:
    """Its shape is told."""
    with pytest.raises(RefitError, match="No optimization profile") as info:
        run(COPY, {"x": np.ones(shape, np.float32)})
    assert str(shape) in str(info.value)
    assert released(cuda)


def test_a_profile_that_cannot_be_switched_to_is_an_error(cuda: FakeCuda) -> None:
    """A run in the first one would be another run."""
    io = [tensor("x", shapes=[((1, 4), (1, 4), (1, 4)), ((2, 4), (2, 4), (2, 4))]), output("y", "x")]
    with pytest.raises(RefitError, match="profile 1 could not be chosen"):
        run(io, {"x": VALUES}, FakeTensorRt(no_profile=1))


@pytest.mark.parametrize("dtype", ["FLOAT", "HALF", "INT8", "INT32", "INT64", "BOOL", "UINT8", "BF16"])
def test_inputs_are_made_up_in_the_best_shape(cuda: FakeCuda, dtype: str) -> None:
    """Of every type; the same each time, and integers are all 1."""
    io = [tensor("x", dtype), output("y", "x", dtype)]
    first, module = run(io, None)
    second, _ = run(io, None)
    assert module.state.contexts[0].shapes["x"] == (2, 4)
    assert np.array_equal(first["y"], second["y"])
    if dtype in ("FLOAT", "HALF"):
        assert len(np.unique(first["y"])) == 8
    elif dtype != "BF16":
        assert (first["y"] == 1).all()


@pytest.mark.parametrize("dtype", ["FLOAT", "INT32"])
def test_scalars_stay_scalars(cuda: FakeCuda, dtype: str) -> None:
    """Given or made up: NumPy is quick to make vectors of them, which no profile takes."""
    io = [tensor("x", dtype, ((), (), ())), output("y", "x", dtype)]
    value = np.array(7, {"FLOAT": np.float32, "INT32": np.int32}[dtype])
    got, _ = run(io, {"x": value})
    assert got["y"].shape == ()
    assert got["y"] == 7
    assert run(io, None)[0]["y"].shape == ()


def test_bfloat16_comes_as_float32(cuda: FakeCuda) -> None:
    """Values, not bit patterns; a scalar too."""
    for shape in ((3,), ()):
        io = [tensor("x", "BF16", (shape, shape, shape)), output("y", "x", "BF16")]
        bits = np.full(shape, 0xC040, np.uint16)
        got, _ = run(io, {"x": bits})
        assert got["y"].dtype == np.float32
        assert got["y"].shape == shape
        assert np.array_equal(got["y"], np.full(shape, -3.0, np.float32))


def test_types_that_cannot_be_compared_are_named(cuda: FakeCuda) -> None:
    """NumPy has no 8-bit floats."""
    with pytest.raises(RefitError, match="'y' is of type FP8"):
        run([tensor("x"), output("y", "x", "FP8")], {"x": VALUES})


def test_an_output_whose_shape_depends_on_the_data_is_refused(cuda: FakeCuda) -> None:
    """In place of an array of a negative size."""
    with pytest.raises(RefitError, match="shape of output 'y' depends on the data"):
        run([tensor("x"), output("y", "x", shape=[-1, 4])], {"x": VALUES})
    assert released(cuda)


def _shape_input(values: Any) -> list[dict[str, Any]]:
    return [
        tensor("x"),
        tensor("s", "INT64", [], location="HOST", shape=[2], values=values),
        output("y", "x"),
        output("t", "s", "INT64", location="HOST", shape=[2]),
    ]


def test_tensors_of_the_host_stay_there(cuda: FakeCuda) -> None:
    """TensorRT reads and writes shapes from the CPU: an address of the GPU's would end the process."""
    got, module = run(_shape_input([[[1, 1], [3, 4], [9, 9]]]), {"x": VALUES, "s": np.array([5, 6])})
    addresses = module.state.contexts[0].addresses
    assert got["t"].tolist() == [5, 6]
    assert addresses["t"] == got["t"].ctypes.data
    assert addresses["s"] not in cuda.made
    assert addresses["x"] in cuda.made
    assert released(cuda)


def test_shape_inputs_are_made_up_from_the_profile_s_values(cuda: FakeCuda) -> None:
    """Their values are dimensions: 1 may lie outside of what the engine takes."""
    got, _ = run(_shape_input([[[2, 2], [3, 4], [9, 9]]]), None)
    assert got["t"].tolist() == [3, 4]


def test_shape_inputs_without_a_range_are_made_up_too(cuda: FakeCuda) -> None:
    """TensorRT then gives an empty list."""
    got, _ = run(_shape_input([]), None)
    assert got["t"].tolist() == [1, 1]


def test_tensorrt_8_does_not_tell_the_ranges_of_shape_inputs(cuda: FakeCuda) -> None:
    """They are taken as given, or made up as 1."""
    io = [{**t, "dtype": "INT32"} if t["dtype"] == "INT64" else t for t in _shape_input([[[2, 2], [3, 4], [9, 9]]])]
    got, _ = run(io, None, FakeTensorRt(version="8.6.0"))
    assert got["t"].tolist() == [1, 1]
    given = {"x": VALUES, "s": np.array([5, 6], np.int32)}
    assert run(io, given, FakeTensorRt(version="8.6.0"))[0]["t"].tolist() == [5, 6]


def test_shape_inputs_choose_the_profile_by_their_values(cuda: FakeCuda) -> None:
    """A profile that does not take the value is passed over; none that takes it is an error."""
    io = _shape_input([[[1, 1], [2, 2], [4, 4]], [[5, 5], [6, 6], [9, 9]]])
    io[0]["profiles"] *= 2
    _, module = run(io, {"x": VALUES, "s": np.array([5, 6])})
    assert module.state.contexts[0].profile == 1
    with pytest.raises(RefitError, match="No optimization profile"):
        run(io, {"x": VALUES, "s": np.array([50, 6])})


def test_empty_tensors_have_an_address_and_are_not_copied(cuda: FakeCuda) -> None:
    """CUDA gives no memory of size 0."""
    shape = (0, 4)
    got, _ = run([tensor("x", shapes=(shape, shape, shape)), output("y", "x")], {"x": np.zeros(shape, np.float32)})
    assert got["y"].shape == shape


def test_an_engine_that_does_not_run_is_an_error(cuda: FakeCuda) -> None:
    """Zeros must not pass for its output."""
    with pytest.raises(RefitError, match="did not run"):
        run(COPY, {"x": VALUES}, FakeTensorRt(no_run=1))
    assert released(cuda)


def test_no_execution_context_is_the_gpu_s_fault(cuda: FakeCuda) -> None:
    """Most often its memory is full."""
    with pytest.raises(DeviceFailed, match="memory full"):
        run(COPY, {"x": VALUES}, FakeTensorRt(no_context=1))


_TO_BEGIN = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreate"]


@pytest.mark.parametrize(
    "call", [*_TO_BEGIN, "cuMemAlloc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuStreamSynchronize"]
)
def test_errors_of_cuda_are_told_by_number_and_name(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """An error inside a kernel shows when the stream is waited for; what was taken before goes back."""
    cuda = FakeCuda(call).install(monkeypatch)
    with pytest.raises(DeviceFailed, match=r"CUDA error 2 \(CUDA_ERROR_OUT_OF_MEMORY\)"):
        run(COPY, {"x": VALUES})
    assert released(cuda)


def test_an_error_that_has_no_name_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer driver knows errors that nobody here does."""
    cuda = FakeCuda("cuMemAlloc").install(monkeypatch)
    monkeypatch.setattr(cuda, "cuGetErrorName", lambda error: (1, None))
    monkeypatch.setattr(cuda, "_answer", lambda call, *values: (9999 if call in cuda.fail else 0, *values))
    with pytest.raises(DeviceFailed, match=r"CUDA error 9999 \(unknown\)"):
        run(COPY, {"x": VALUES})


def test_errors_on_the_way_out_do_not_hide_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that cannot be freed is the process's end to clear up."""
    FakeCuda("cuMemFree", "cuStreamDestroy", "cuDevicePrimaryCtxRelease").install(monkeypatch)
    got, _ = run(COPY, {"x": VALUES})
    assert np.array_equal(got["y"], VALUES)


def test_one_run_after_the_other(cuda: FakeCuda) -> None:
    """Golden data may hold several; each takes and gives back a context of its own count."""
    for factor in (1, 2):
        got, _ = run(COPY, {"x": VALUES * np.float32(factor)})
        assert np.array_equal(got["y"], VALUES * np.float32(factor))
        assert released(cuda)
