from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

if sys.platform != "linux":
    pytest.skip("the fault layer is loaded with LD_PRELOAD, into glibc", allow_module_level=True)

from .layer import Layer, NoCompiler, build
from .matrix import Matrix, Point
from .scenes import make_scenes, weights_server


class Ready(NamedTuple):
    """The matrix with its scenes, and every case of it."""

    matrix: Matrix
    points: list[Point]


@pytest.fixture(scope="session")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Layer:
    """The compiled fault layer."""
    try:
        return build(tmp_path_factory.mktemp("layer"))
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def ready(layer: Layer) -> Iterator[Ready]:
    """The scenes, traced once without faults."""
    # A short path: there is a socket below it.
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        with weights_server(folder / "served") as url:
            matrix = Matrix(layer, folder)
            scenes = make_scenes(folder / "scenes", url, folder / "served")
            yield Ready(matrix, list(matrix.points(scenes)))
    finally:
        shutil.rmtree(folder)
