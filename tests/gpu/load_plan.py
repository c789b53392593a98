"""Load a finished plan in a process of its own, as a host app would, and save what it computes.

load_plan.py PLAN INPUT_NAME INPUT.npy OUTPUT.npy
"""

from __future__ import annotations

import sys

import numpy as np
import tensorrt
from cuda.bindings import runtime as cudart


def main(plan: str, input_name: str, input_path: str, output_path: str) -> None:
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    runtime = tensorrt.Runtime(logger)
    with open(plan, "rb") as file:
        engine = runtime.deserialize_cuda_engine(file.read())
    context = engine.create_execution_context()
    given = np.load(input_path)
    context.set_input_shape(input_name, given.shape)
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(context.get_tensor_shape(name))
        host = given if name == input_name else np.full(shape, np.nan, np.float32)
        _, address = cudart.cudaMalloc(host.nbytes)
        cudart.cudaMemcpy(address, host.ctypes.data, host.nbytes, cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)
        context.set_tensor_address(name, address)
        if name != input_name:
            output, where = host, address
    assert context.execute_async_v3(0)
    cudart.cudaDeviceSynchronize()
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    cudart.cudaMemcpy(output.ctypes.data, where, output.nbytes, kind)
    np.save(output_path, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
