"""TensorRT-LLM's plugins: layers of its plans that TensorRT itself does not know.

Without them TensorRT refuses to open nearly every plan that TensorRT-LLM has built ("getPluginCreator could not
find plugin"). They lie in a library of the package tensorrt_llm, which registers them when it is imported.

A plan for several GPUs has plugins that look for the other ranks as soon as it is opened, over MPI and NCCL, and
wait for them; not so with IS_BUILDING=1 in the environment, as TensorRT-LLM's own refit command has it
(``_is_building`` in its _common.py, ``AllreducePlugin::initialize``).

Not tried with the real package: it needs a GPU, PyTorch and MPI.
"""

from __future__ import annotations

import importlib
import os

MODULE = "tensorrt_llm"


def load_plugins() -> str:
    """Register the plugins in this process; "", or why that was not possible, in words.

    Only for the worker: the import loads gigabytes of libraries, and from now on no plan can talk to others.
    """
    os.environ["IS_BUILDING"] = "1"
    try:
        importlib.import_module(MODULE)
    except Exception as error:  # noqa: BLE001 - its own libraries and those that it needs fail in ways of their own
        return f"{type(error).__name__}: {error}"
    return ""
