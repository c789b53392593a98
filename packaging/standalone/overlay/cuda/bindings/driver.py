"""The calls of the CUDA driver API that the check run makes, as cuda-bindings offers them: each gives a tuple, first the
error code (0: none), then its values. Pointers and handles are plain numbers.

Raises RuntimeError, as cuda-bindings does, where the driver library or a function of it is not there. Functions whose
symbol has a version (cuda.h hides that behind a macro) are called by the version that drivers have from CUDA 11 on.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

_INT, _UINT, _SIZE, _POINTER, _ADDRESS = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64


@functools.cache
def _function(symbol: str, *types: Any) -> Any:
    try:
        function = getattr(ctypes.CDLL("libcuda.so.1"), symbol)
    except (OSError, AttributeError) as error:
        raise RuntimeError(str(error)) from error
    function.restype = _INT
    function.argtypes = types
    return function


def cuInit(flags: int) -> tuple[int]:
    """Start the driver in this process."""
    return (_function("cuInit", _UINT)(flags),)


def cuDeviceGet(ordinal: int) -> tuple[int, int]:
    """The device's handle."""
    device = _INT()
    return _function("cuDeviceGet", _POINTER, _INT)(ctypes.byref(device), ordinal), device.value


def cuDevicePrimaryCtxRetain(device: int) -> tuple[int, int]:
    """The context that the CUDA runtime uses too."""
    context = _POINTER()
    function = _function("cuDevicePrimaryCtxRetain", _POINTER, _INT)
    return function(ctypes.byref(context), device), context.value or 0


def cuDevicePrimaryCtxRelease(device: int) -> tuple[int]:
    """Give one hold on it back."""
    return (_function("cuDevicePrimaryCtxRelease_v2", _INT)(device),)


def cuCtxSetCurrent(context: int) -> tuple[int]:
    """Make it this thread's."""
    return (_function("cuCtxSetCurrent", _POINTER)(context),)


def cuStreamCreate(flags: int) -> tuple[int, int]:
    """A new stream."""
    stream = _POINTER()
    return _function("cuStreamCreate", _POINTER, _UINT)(ctypes.byref(stream), flags), stream.value or 0


def cuStreamDestroy(stream: int) -> tuple[int]:
    """End a stream once its work is done."""
    return (_function("cuStreamDestroy_v2", _POINTER)(stream),)


def cuStreamSynchronize(stream: int) -> tuple[int]:
    """Wait for all that was put on it."""
    return (_function("cuStreamSynchronize", _POINTER)(stream),)


def cuMemAlloc(size: int) -> tuple[int, int]:
    """The address of new device memory."""
    address = _ADDRESS()
    return _function("cuMemAlloc_v2", _POINTER, _SIZE)(ctypes.byref(address), size), address.value


def cuMemFree(address: int) -> tuple[int]:
    """Give device memory back."""
    return (_function("cuMemFree_v2", _ADDRESS)(address),)


def cuMemcpyHtoDAsync(target: int, source: int, size: int, stream: int) -> tuple[int]:
    """Copy to the device, in the stream's order."""
    function = _function("cuMemcpyHtoDAsync_v2", _ADDRESS, _POINTER, _SIZE, _POINTER)
    return (function(target, source, size, stream),)


def cuMemcpyDtoHAsync(target: int, source: int, size: int, stream: int) -> tuple[int]:
    """Copy from the device, in the stream's order."""
    function = _function("cuMemcpyDtoHAsync_v2", _POINTER, _ADDRESS, _SIZE, _POINTER)
    return (function(target, source, size, stream),)


def cuGetErrorName(error: int) -> tuple[int, bytes | None]:
    """Its name in cuda.h, None for a number that this driver does not know."""
    name = ctypes.c_char_p()
    return _function("cuGetErrorName", _INT, _POINTER)(error, ctypes.byref(name)), name.value
