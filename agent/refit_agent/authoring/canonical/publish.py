"""Put a finished graph and its data file in their place, both or neither.

Both are written into a new folder beside the target, under their final names, so that they can be
tried out there. Where files are replaced, the old graph goes first and the new one comes last: whoever
looks in between finds no graph, never a graph with the weights of another.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from refit_agent.authoring.new_folders import new_folders
from refit_agent.digest import fsync_folder


@contextlib.contextmanager
def workshop(target: str) -> Iterator[str]:
    """A new folder beside ``target``, gone with all that is in it when the block ends. The folder that it is in is made
    if it is missing, and goes again if nothing came of it."""
    folder, name = os.path.split(os.path.abspath(target))
    with new_folders(folder):
        made = tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def publish(folder: str, name: str, data_name: str, target: str) -> None:
    """Move the graph ``name`` and its data file, if there is one, from ``folder`` to where ``target`` is.

    What was there before is there again if this fails.

    Raises:
        OSError: a file cannot be moved.
    """
    place = os.path.dirname(os.path.abspath(target))
    data = os.path.join(place, data_name)
    old_graph, old_data = os.path.join(folder, "old.graph"), os.path.join(folder, "old.data")
    has_data = os.path.exists(os.path.join(folder, data_name))
    moved: list[tuple[str, str]] = []
    made: list[str] = []
    try:
        for old, kept, wanted in ((target, old_graph, True), (data, old_data, has_data)):
            if wanted and os.path.lexists(old):
                os.replace(old, kept)
                moved.append((kept, old))
        if has_data:
            os.replace(os.path.join(folder, data_name), data)
            made.append(data)
            fsync_folder(place)
        os.replace(os.path.join(folder, name), target)
    except BaseException:
        for path in made:
            os.unlink(path)
        for kept, old in reversed(moved):
            os.replace(kept, old)
        raise
    fsync_folder(place)
