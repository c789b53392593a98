"""Open a real plan, set all weights but one, and print what the refit says (for a test, in its own process)."""

from __future__ import annotations

import sys

from refit_agent.errors import RefitRefused
from refit_agent.manifest import Engine, FileRef
from refit_agent.refit.messages import Job, Located
from refit_agent.refit.unpack import unpack
from refit_agent.runtimes.tensorrt import TensorRtRuntime
from refit_agent.weights import OnnxWeights


def main(plan: str, onnx: str) -> None:
    import os

    size = os.path.getsize(plan)
    engine = Engine(
        path="p", size=size, sha256="0" * 64, runtime="tensorrt", built_with="8.6.0.12", plan_size=size, strip="zeros"
    )
    weights = Located(path=onnx, ref=FileRef(path="o", size=os.path.getsize(onnx), sha256="0" * 64))
    job = Job(
        staging="",
        plan=plan,
        engine=engine,
        weights=weights,
        external=(),
        runtime="tensorrt",
        module="tensorrt",
        module_folder="",
        module_version="8.6.0",
        gpu="",
    )
    runtime = TensorRtRuntime(job)
    image = unpack(plan, engine)
    opened = runtime.open(image)
    with OnnxWeights(onnx) as source:
        sources = opened.sources(source, None)
        for name, found in sources.items():
            if name != "c2.w":
                opened.set_weight(name, found.dtype, found.array())
        try:
            opened.refit()
        except RefitRefused as error:
            print(error, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
