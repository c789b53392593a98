"""`refit-agent ui`: the service's status page, in the browser."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import click
import msgspec

from refit_agent.cli import output
from refit_agent.cli.group import json_option
from refit_agent.client.sync import ServiceClient


@click.command(short_help="Open the service's status page in a browser.")
@click.option("--no-open", is_flag=True, help="Print the page's address, and nothing else.")
@json_option
def ui(no_open: bool, as_json: bool) -> int:
    """Open the service's status page: the machine, the registered bundles with the engine of each model and why,
    what is being made, the cache and the last errors. The page only shows.

    The address works once, within a minute, for this user's browsers on this machine. Where there is none, as
    over ssh, it is printed: forward its port under the same number, and open it at home. Exit code 8 if there is
    no service.

    \b
    Example:
      refit-agent ui
    """
    with ServiceClient() as client:
        link = client.page()
    opened = not no_open and _opened(link.url)
    if as_json:
        output.emit_json({**msgspec.to_builtins(link), "opened": opened})
        return 0
    output.emit(link.url)
    if not no_open:
        how = "opened in the browser" if opened else "open it in a browser of this machine"
        output.emit(f"  {how}; it works once, within {output.seconds_text(link.ttl_s)}")
    return 0


def _opened(url: str) -> bool:
    """Whether a browser with windows took the address; one for terminals would show nothing of the page."""
    headless = not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if sys.platform not in ("win32", "darwin") and headless:
        return False
    import webbrowser

    try:
        with _mute():
            return webbrowser.open(url)
    except (OSError, webbrowser.Error):
        return False


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """A browser that is started now would keep our standard output for as long as it runs, and write to it."""
    if sys.platform == "win32":  # none is started by us there
        yield
        return
    kept = [(number, os.dup(number)) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number, _ in kept:
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
