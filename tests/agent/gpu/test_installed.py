"""Runtimes read off folder names; the folders are real."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import pytest

from refit_agent.gpu.folders import search_folders
from refit_agent.gpu.installed import installed_runtimes
from refit_agent.machine import InstalledRuntime
from refit_agent.refit import worker_process


def site(folder: Path, *infos: str, **packages: str) -> str:
    """A site-packages folder with packages (name = text of __init__.py) and dist-info folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in packages.items():
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(source)
    for info in infos:
        (folder / f"{info}.dist-info").mkdir()
    return str(folder)


def one(folder: str) -> tuple[str, str, int]:
    (found,) = installed_runtimes([folder])
    assert found.folder == ""
    return found.module, found.version, found.cuda_major


@pytest.mark.parametrize(
    ("module", "infos", "version", "cuda"),
    [
        (
            "tensorrt_lean",
            [
                "tensorrt_lean-11.4.0.106",
                "tensorrt_lean_cu13-11.4.0.106",
                "tensorrt_lean_cu13_bindings-11.4.0.106",
                "tensorrt_lean_cu13_libs-11.4.0.106",
            ],
            "11.4.0.106",
            13,
        ),
        ("tensorrt_lean", ["tensorrt_lean-8.6.1", "tensorrt_lean_bindings-8.6.1"], "8.6.1", 0),
        ("tensorrt_lean", ["tensorrt_lean_cu12_bindings-10.16.1.11"], "10.16.1.11", 12),
        ("tensorrt", ["tensorrt_cu12_bindings-10.1.0", "tensorrt_lean-11.4.0.106"], "10.1.0", 12),
        ("tensorrt", ["tensorrt-8.6.0", "tensorrt_dispatch-9.9.9", "torch_tensorrt-2.0"], "8.6.0", 0),
        ("tensorrt_rtx", ["tensorrt_rtx_cu12-1.7.1.116", "tensorrt_rtx_cu12_bindings-1.7.1.116"], "1.7.1.116", 12),
        ("onnxruntime", ["onnxruntime-1.31.1"], "1.31.1", 0),
        ("onnxruntime", ["onnxruntime_gpu-1.20.0", "onnxruntime_extensions-0.9.0"], "1.20.0", 0),
        ("onnxruntime", ["onnxruntime.directml-1.20.0"], "1.20.0", 0),
        # an upgrade left a metapackage behind: the bindings decide
        ("tensorrt_lean", ["tensorrt_lean-10.0.1", "tensorrt_lean_cu13_bindings-11.4.0.106"], "11.4.0.106", 13),
        ("tensorrt_lean", ["tensorrt_lean-11.4.0", "tensorrt_lean_cu12_bindings-10.16.1.11"], "10.16.1.11", 12),
    ],
)
def test_versions(tmp_path: Path, module: str, infos: list[str], version: str, cuda: int) -> None:
    assert one(site(tmp_path, *infos, **{module: ""})) == (module, version, cuda)


def test_the_source_decides_between_two_dist_infos(tmp_path: Path) -> None:
    folder = site(
        tmp_path,
        "tensorrt_lean_cu12_bindings-10.16.1.11",
        "tensorrt_lean_cu13_bindings-11.4.0.106",
        tensorrt_lean="from tensorrt_lean_bindings import __version__\n",
        tensorrt_lean_bindings='import os\n\n__version__ = "10.16.1.11"\n',
    )
    assert one(folder) == ("tensorrt_lean", "10.16.1.11", 12)


def test_two_cuda_majors_of_one_version_cannot_be_told_apart(tmp_path: Path) -> None:
    infos = ["tensorrt_lean_cu12_bindings-11.4.0.106", "tensorrt_lean_cu13_bindings-11.4.0.106"]
    assert one(site(tmp_path, *infos, tensorrt_lean="")) == ("tensorrt_lean", "11.4.0.106", 0)


def test_without_dist_info_the_source_tells(tmp_path: Path) -> None:
    # as TensorRT 8.6.0's own module: from .tensorrt import *, then the version, and code that must not run
    source = 'raise SystemExit("executed")\n\nfrom .tensorrt import *\n\n__version__ = "8.6.0"\n'
    assert one(site(tmp_path, tensorrt=source)) == ("tensorrt", "8.6.0", 0)


def test_a_package_without_any_version_is_listed_without(tmp_path: Path) -> None:
    assert one(site(tmp_path, tensorrt="")) == ("tensorrt", "", 0)


def test_remains_of_an_uninstalled_package_are_none(tmp_path: Path) -> None:
    (tmp_path / "tensorrt_lean" / "plugin").mkdir(parents=True)
    assert installed_runtimes([site(tmp_path, "tensorrt_lean-11.4.0.106")]) == ()


def test_the_first_on_the_path_hides_the_rest_but_folders_apart_all_count(tmp_path: Path) -> None:
    first = site(tmp_path / "a", "tensorrt_lean-11.4.0.106", tensorrt_lean="")
    second = site(tmp_path / "b", "tensorrt_lean-10.16.1.11", "onnxruntime-1.20.0", tensorrt_lean="", onnxruntime="")
    missing = str(tmp_path / "missing")
    assert installed_runtimes([missing, first, second], [missing, second]) == (
        InstalledRuntime(module="tensorrt_lean", version="11.4.0.106"),
        InstalledRuntime(module="onnxruntime", version="1.20.0"),
        InstalledRuntime(module="tensorrt_lean", version="10.16.1.11", folder=second),
        InstalledRuntime(module="onnxruntime", version="1.20.0", folder=second),
    )


def test_which_folders_are_searched(tmp_path: Path) -> None:
    here, script = str(tmp_path), str(tmp_path / "app")
    path = ["", script, here, here, "relative", Path("/x")]
    environ = {"REFIT_AGENT_RUNTIMES": os.pathsep.join([here, "", here])}
    assert search_folders(path, environ) == ((script, here), (here,))
    assert search_folders(path, {}) == ((script, here), ())


def test_the_worker_gets_what_was_searched() -> None:
    """Otherwise a runtime is found here and not there, or the other way round, at every launch."""
    given = worker_process.worker_search_path()
    assert given[: len(search_folders()[0])] == list(search_folders()[0])


def test_this_very_installation_agrees_with_importlib() -> None:
    found = {r.module: r.version for r in installed_runtimes(*search_folders())}
    for module in ("onnxruntime", "tensorrt_lean"):
        try:
            expected = metadata.version(module)
        except metadata.PackageNotFoundError:
            continue
        assert found[module] == expected
