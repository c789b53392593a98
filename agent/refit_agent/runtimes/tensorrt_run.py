"""Run a TensorRT engine once, for the check run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refit_agent.errors import CheckImpossible, DeviceFailed, RefitError
from refit_agent.gpu import driver
from refit_agent.runtimes.base import Array
from refit_agent.weight_map.batch_norm import float32_to_bfloat16

_NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "BF16": np.uint16,
}


def run_engine(module: Any, engine: Any, inputs: Mapping[str, Array] | None) -> dict[str, Array]:
    """The outputs of one run, by name, in host memory; bfloat16 outputs come as float32.

    Without ``inputs`` every input is filled with fixed pseudo-random values in its optimum shape.

    Raises:
        DeviceFailed: CUDA reports an error.
        RefitError: the inputs do not fit the engine, or it does not run.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    wanted = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
    feeds = _made_up(engine, wanted) if inputs is None else {n: _feed(engine, n, inputs) for n in wanted}

    def on_host(name: str) -> bool:
        return bool(engine.get_tensor_location(name) == module.TensorLocation.HOST)

    context = engine.create_execution_context()
    if context is None:
        raise DeviceFailed(detail="TensorRT could not create an execution context: is the GPU's memory full?")
    with _Buffers() as buffers:
        _choose_profile(engine, context, feeds, buffers.stream)
        for name, array in feeds.items():
            if not context.set_input_shape(name, array.shape):
                raise CheckImpossible(detail=f"The engine takes no input {name!r} of shape {array.shape}.")
            _place(context, name, array.ctypes.data if on_host(name) else buffers.upload(array))
        outputs: dict[str, Array] = {}
        downloads: list[tuple[Array, int]] = []
        for name in names:
            if name not in feeds:
                array = outputs[name] = np.zeros(_shape(context, name), _type(engine, name))
                # TensorRT writes tensors of its host side from the CPU: a GPU address would crash it.
                address = array.ctypes.data if on_host(name) else buffers.upload(array)
                _place(context, name, address)
                if not on_host(name):
                    downloads.append((array, address))
        if not context.execute_async_v3(buffers.stream):
            raise RefitError(detail="The finished engine did not run on the check input.")
        for array, address in downloads:
            buffers.download(array, address)
        buffers.synchronize()
        return {name: _widened(engine, name, array) for name, array in outputs.items()}


def _place(context: Any, name: str, address: int) -> None:
    if not context.set_tensor_address(name, address):
        raise CheckImpossible(detail=f"The engine takes no address for tensor {name!r}.")


def _feed(engine: Any, name: str, inputs: Mapping[str, Array]) -> Array:
    if name not in inputs:
        raise CheckImpossible(detail=f"The golden data has no input {name!r}; it has {', '.join(inputs)}.")
    wanted = _type(engine, name)
    if engine.get_tensor_dtype(name).name == "BF16" and inputs[name].dtype == np.float32:
        # NumPy has no such type, so a golden file cannot hold it.
        return float32_to_bfloat16(inputs[name]).reshape(inputs[name].shape)
    if inputs[name].dtype != wanted:
        raise CheckImpossible(
            detail=f"The golden input {name!r} is {inputs[name].dtype}, and the engine takes {wanted}."
        )
    return np.asarray(inputs[name], order="C")  # ascontiguousarray makes a vector of a scalar


def _made_up(engine: Any, names: list[str]) -> dict[str, Array]:
    random = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for name in names:
        dtype = _type(engine, name)
        if engine.is_shape_inference_io(name):
            ranges = _ranges(engine, name, 0)
            shape = tuple(engine.get_tensor_shape(name))
            # Its values are dimensions: others than the profile's can make the engine refuse or fill the memory.
            feeds[name] = np.array(ranges[1], dtype).reshape(shape) if ranges else np.ones(shape, dtype)
            continue
        shape = tuple(max(1, d) for d in _ranges(engine, name, 0)[1])
        # Integers are most often indices: 1 is in the range of every table that is worth having.
        values = random.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)
        feeds[name] = np.asarray(values, dtype, order="C")
    return feeds


def _ranges(engine: Any, name: str, profile: int) -> Any:
    """Least, best and most of an input's dimensions, or of its values if the engine reads shapes there.

    Empty where nobody knows: TensorRT 8.6 does not tell the ranges of values.
    """
    if engine.is_shape_inference_io(name):
        ask = getattr(engine, "get_tensor_profile_values", None)
        return ask(profile, name) if ask is not None else ()
    return engine.get_tensor_profile_shape(name, profile)


def _choose_profile(engine: Any, context: Any, feeds: Mapping[str, Array], stream: int) -> None:
    """Use the first optimization profile whose ranges hold every input."""
    ruled = {n: tuple(a.ravel()) if engine.is_shape_inference_io(n) else a.shape for n, a in feeds.items()}
    for index in range(engine.num_optimization_profiles):
        ranges = {name: _ranges(engine, name, index) for name in feeds}
        if all(_within(ruled[name], *r[::2]) for name, r in ranges.items() if len(r) == 3):
            # On the stream of the run: on another one the run could begin before the switch is done.
            if index and not context.set_optimization_profile_async(index, stream):
                raise CheckImpossible(detail=f"Optimization profile {index} could not be chosen.")
            return
    shapes = ", ".join(f"{name}: {array.shape}" for name, array in feeds.items())
    raise CheckImpossible(detail=f"No optimization profile of the engine takes the check input ({shapes}).")


def _within(shape: tuple[Any, ...], least: Any, most: Any) -> bool:
    return len(shape) == len(least) and all(a <= d <= b for a, d, b in zip(least, shape, most, strict=True))


def _shape(context: Any, name: str) -> tuple[int, ...]:
    shape = tuple(context.get_tensor_shape(name))
    if any(d < 0 for d in shape):
        raise CheckImpossible(
            detail=f"The shape of output {name!r} depends on the data; such a model cannot be checked yet."
        )
    return shape


def _type(engine: Any, name: str) -> np.dtype[Any]:
    member = engine.get_tensor_dtype(name).name
    if member not in _NUMPY:
        raise CheckImpossible(detail=f"Tensor {name!r} is of type {member}, which cannot be checked yet.")
    return np.dtype(_NUMPY[member])


def _widened(engine: Any, name: str, array: Array) -> Array:
    if engine.get_tensor_dtype(name).name != "BF16":
        return array
    # Both operands uint32: NumPy 1 makes int64 of a scalar and a Python number.
    return np.asarray(np.left_shift(array.astype(np.uint32), np.uint32(16))).view(np.float32)


class _Buffers:
    """Device memory and a stream for one run, given back when the block is left."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self.stream = 0

    def __enter__(self) -> _Buffers:
        with self._undo:  # what was taken goes back if one of these calls fails
            device = driver.enter_context()
            self._undo.callback(_give_back, driver.leave_context, device)
            self.stream = driver.create_stream()
            self._undo.callback(_give_back, driver.destroy_stream, self.stream)
            self._undo = self._undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        # The other way round: memory, which waits for a run that still uses it, then stream, then context.
        self._undo.close()

    def upload(self, array: Array) -> int:
        """Address of a copy of ``array`` on the GPU; the array must live until `synchronize`."""
        # CUDA gives no memory of size 0.
        address = driver.allocate(max(1, array.nbytes))
        self._undo.callback(_give_back, driver.free, address)
        if array.nbytes:
            # On the run's own stream: a copy elsewhere may still be on its way to the GPU when the call returns.
            driver.copy_in(address, array.ctypes.data, array.nbytes, self.stream)
        return address

    def download(self, array: Array, address: int) -> None:
        """Copy from the GPU into ``array``, which has it after `synchronize`."""
        if array.nbytes:
            driver.copy_out(array.ctypes.data, address, array.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait for all copies and the run."""
        driver.wait(self.stream)


def _give_back(function: Callable[[int], None], handle: int) -> None:
    with contextlib.suppress(DeviceFailed):  # a first error is on its way already
        function(handle)
