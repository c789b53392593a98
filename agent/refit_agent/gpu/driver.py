"""The calls of the CUDA driver API (cuda.h) that the worker makes, by ctypes: a context, memory, copies, a stream.

Fourteen functions are all that the check run needs; packages that bind the whole of CUDA take 30 MB of a user's disk.
Everything happens in the primary context of the one visible GPU: TensorRT, which uses the CUDA runtime, is in the
same one, so that addresses and the stream of either are good in both.

Addresses, streams and devices are plain numbers, sizes are bytes. A context is current in the thread that made it so,
and the calls that need one must come from there. Every function raises DeviceFailed, which names the call and CUDA's
error by number and name.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

from refit_agent.errors import DeviceFailed

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_INT, _UINT, _SIZE, _POINTER, _ADDRESS = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint64
#: Arguments by symbol. cuda.h gives those that end in _v2 a name without it, by a macro; they are there from CUDA 4 on,
#: cuDevicePrimaryCtxRelease_v2 from 11 on. A wrong type here would cut addresses off to 32 bits.
_SYMBOLS: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UINT,),
    "cuDeviceGet": (_POINTER, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxSetCurrent": (_POINTER,),
    "cuMemGetInfo_v2": (_POINTER, _POINTER),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _ADDRESS, _SIZE, _POINTER),
    "cuStreamCreate": (_POINTER, _UINT),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamSynchronize": (_POINTER,),
    "cuGetErrorName": (_INT, _POINTER),
}


def enter_context() -> int:
    """Make the primary context of device 0 this thread's; give the device, for `leave_context`."""
    device, context = _INT(), _POINTER()
    _call("cuInit", 0)
    _call("cuDeviceGet", device, 0)
    _call("cuDevicePrimaryCtxRetain", context, device.value)
    try:
        _call("cuCtxSetCurrent", context.value)
    except DeviceFailed:
        leave_context(device.value)
        raise
    return device.value


def leave_context(device: int) -> None:
    """Give back one hold on the device's primary context."""
    _call("cuDevicePrimaryCtxRelease_v2", device)


def memory() -> tuple[int, int]:
    """Free and total memory of the current context's GPU."""
    free, total = _SIZE(), _SIZE()
    _call("cuMemGetInfo_v2", free, total)
    return free.value, total.value


def allocate(size: int) -> int:
    """The address of new memory on the GPU; ``size`` must not be 0."""
    address = _ADDRESS()
    _call("cuMemAlloc_v2", address, size)
    return address.value


def free(address: int) -> None:
    """Give memory back, once work that uses it is done: this waits for it."""
    _call("cuMemFree_v2", address)


def copy_in(address: int, source: int, size: int, stream: int) -> None:
    """Copy from the host's ``source`` to the GPU, in the stream's order; ``source`` must live until `wait`."""
    _call("cuMemcpyHtoDAsync_v2", address, source, size, stream)


def copy_out(target: int, address: int, size: int, stream: int) -> None:
    """Copy from the GPU to the host's ``target``, in the stream's order; it is there after `wait`."""
    _call("cuMemcpyDtoHAsync_v2", target, address, size, stream)


def create_stream() -> int:
    """A new stream, which keeps order with the default one."""
    stream = _POINTER()
    _call("cuStreamCreate", stream, 0)
    return stream.value or 0


def destroy_stream(stream: int) -> None:
    """End a stream."""
    _call("cuStreamDestroy_v2", stream)


def wait(stream: int) -> None:
    """Wait for all that was put on the stream; an error inside a kernel shows here."""
    _call("cuStreamSynchronize", stream)


def _call(symbol: str, *arguments: Any) -> None:
    """Call it; an argument that is a ctypes object is passed by reference, for the driver to fill in."""
    code = int(_function(symbol)(*(ctypes.byref(a) if isinstance(a, ctypes._SimpleCData) else a for a in arguments)))
    if code != 0:
        raise DeviceFailed(detail=f"{symbol.removesuffix('_v2')} gave CUDA error {code} ({_name(code)})")


def _name(code: int) -> str:
    name = ctypes.c_char_p()
    _function("cuGetErrorName")(code, ctypes.byref(name))
    return (name.value or b"unknown").decode()


@functools.cache
def _function(symbol: str) -> Any:
    try:
        function = getattr(_library(), symbol)
    except AttributeError as error:
        raise DeviceFailed(detail=f"the NVIDIA driver is too old: it has no {symbol}") from error
    function.restype, function.argtypes = _INT, _SYMBOLS[symbol]
    return function


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise DeviceFailed(detail=f"there is no NVIDIA driver ({error})") from error
