"""What an app's developer needs to make a bundle. Never imported on the end user's path.

Names are imported when they are first used: making a bundle needs little of what building engines does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refit_agent.authoring.build.engines import build_engines as build_engines
    from refit_agent.authoring.build.options import BuildOptions as BuildOptions
    from refit_agent.authoring.build.publish import BuiltPlan as BuiltPlan
    from refit_agent.authoring.build.shapes import make_profile as make_profile
    from refit_agent.authoring.canonical.canonicalize import canonicalize as canonicalize
    from refit_agent.authoring.canonical.reorder import reorder as reorder
    from refit_agent.authoring.canonical.report import CanonicalReport as CanonicalReport
    from refit_agent.authoring.cpu_plan import make_cpu_plan as make_cpu_plan
    from refit_agent.authoring.engine_facts import EngineFacts as EngineFacts
    from refit_agent.authoring.golden_data import AddedGolden as AddedGolden
    from refit_agent.authoring.golden_data import add_golden as add_golden
    from refit_agent.authoring.golden_data import clear_golden as clear_golden
    from refit_agent.authoring.import_ep_context import import_context_model as import_context_model
    from refit_agent.authoring.import_ep_context import know_context_model as know_context_model
    from refit_agent.authoring.import_facts import ImportedEngine as ImportedEngine
    from refit_agent.authoring.import_trt_cloud import import_build_result as import_build_result
    from refit_agent.authoring.import_trt_cloud import know_build_result as know_build_result
    from refit_agent.authoring.import_trt_llm import import_engine_folder as import_engine_folder
    from refit_agent.authoring.new_bundle import init_bundle as init_bundle
    from refit_agent.authoring.new_cpu_engine import AddedCpuEngine as AddedCpuEngine
    from refit_agent.authoring.new_cpu_engine import add_cpu_engine as add_cpu_engine
    from refit_agent.authoring.new_engine import AddedEngine as AddedEngine
    from refit_agent.authoring.new_engine import KnownPlan as KnownPlan
    from refit_agent.authoring.new_engine import add_engine as add_engine
    from refit_agent.authoring.new_engine import know_plan as know_plan
    from refit_agent.authoring.new_model import AddedModel as AddedModel
    from refit_agent.authoring.new_model import add_model as add_model
    from refit_agent.authoring.overview import BundleOverview as BundleOverview
    from refit_agent.authoring.overview import inspect_bundle as inspect_bundle
    from refit_agent.authoring.signing import good_signatures as good_signatures
    from refit_agent.authoring.signing import make_key as make_key
    from refit_agent.authoring.signing import public_key_of as public_key_of
    from refit_agent.authoring.signing import sign_bundle as sign_bundle
    from refit_agent.authoring.sizes import BundleSize as BundleSize
    from refit_agent.authoring.sizes import bundle_size as bundle_size
    from refit_agent.authoring.stripping.restore import restore_onnx as restore_onnx
    from refit_agent.authoring.stripping.strip import strip_onnx as strip_onnx
    from refit_agent.authoring.stripping.strip import zeroed_copy as zeroed_copy
    from refit_agent.authoring.trt_llm_known import know_engine_folder as know_engine_folder

_HOMES = {
    "AddedCpuEngine": "refit_agent.authoring.new_cpu_engine",
    "AddedEngine": "refit_agent.authoring.new_engine",
    "AddedGolden": "refit_agent.authoring.golden_data",
    "AddedModel": "refit_agent.authoring.new_model",
    "BuildOptions": "refit_agent.authoring.build.options",
    "BuiltPlan": "refit_agent.authoring.build.publish",
    "BundleOverview": "refit_agent.authoring.overview",
    "BundleSize": "refit_agent.authoring.sizes",
    "CanonicalReport": "refit_agent.authoring.canonical.report",
    "EngineFacts": "refit_agent.authoring.engine_facts",
    "ImportedEngine": "refit_agent.authoring.import_facts",
    "KnownPlan": "refit_agent.authoring.new_engine",
    "add_cpu_engine": "refit_agent.authoring.new_cpu_engine",
    "add_engine": "refit_agent.authoring.new_engine",
    "add_golden": "refit_agent.authoring.golden_data",
    "add_model": "refit_agent.authoring.new_model",
    "build_engines": "refit_agent.authoring.build.engines",
    "bundle_size": "refit_agent.authoring.sizes",
    "canonicalize": "refit_agent.authoring.canonical.canonicalize",
    "clear_golden": "refit_agent.authoring.golden_data",
    "good_signatures": "refit_agent.authoring.signing",
    "import_build_result": "refit_agent.authoring.import_trt_cloud",
    "import_context_model": "refit_agent.authoring.import_ep_context",
    "import_engine_folder": "refit_agent.authoring.import_trt_llm",
    "init_bundle": "refit_agent.authoring.new_bundle",
    "inspect_bundle": "refit_agent.authoring.overview",
    "know_build_result": "refit_agent.authoring.import_trt_cloud",
    "know_context_model": "refit_agent.authoring.import_ep_context",
    "know_engine_folder": "refit_agent.authoring.trt_llm_known",
    "know_plan": "refit_agent.authoring.new_engine",
    "make_cpu_plan": "refit_agent.authoring.cpu_plan",
    "make_key": "refit_agent.authoring.signing",
    "make_profile": "refit_agent.authoring.build.shapes",
    "public_key_of": "refit_agent.authoring.signing",
    "reorder": "refit_agent.authoring.canonical.reorder",
    "restore_onnx": "refit_agent.authoring.stripping.restore",
    "sign_bundle": "refit_agent.authoring.signing",
    "strip_onnx": "refit_agent.authoring.stripping.strip",
    "zeroed_copy": "refit_agent.authoring.stripping.strip",
}

__all__ = ["AddedCpuEngine", "AddedEngine", "AddedGolden", "AddedModel", "BuildOptions", "BuiltPlan", "BundleOverview", "BundleSize", "CanonicalReport", "EngineFacts", "ImportedEngine", "KnownPlan", "add_cpu_engine", "add_engine", "add_golden", "add_model", "build_engines", "bundle_size", "canonicalize", "clear_golden", "good_signatures", "import_build_result", "import_context_model", "import_engine_folder", "init_bundle", "inspect_bundle", "know_build_result", "know_context_model", "know_engine_folder", "know_plan", "make_cpu_plan", "make_key", "make_profile", "public_key_of", "reorder", "restore_onnx", "sign_bundle", "strip_onnx", "zeroed_copy"]  # fmt: skip


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
