"""`refit-agent ui`: the service's status page, in the browser."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import msgspec

from refit_agent.cli import output
from refit_agent.cli.group import json_option
from refit_agent.client.sync import ServiceClient

#: A browser that has not said by then that it cannot is one that stays.
_PATIENCE_S = 3.0
#: Alone, so that nothing in the current folder is taken for a module of Python's.
_OPEN = "import sys, webbrowser; sys.exit(0 if webbrowser.open(sys.stdin.read()) else 1)"


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
    if not as_json:
        output.emit(link.url)  # now: it does not depend on what becomes of the browser
    opened = not no_open and _opened(link.url)
    if as_json:
        output.emit_json({**msgspec.to_builtins(link), "opened": opened})
    elif not no_open:
        how = "opened in the browser" if opened else "open it in a browser of this machine"
        output.emit(f"  {how}; it works once, within {output.seconds_text(link.ttl_s)}")
    return 0


def _opened(url: str) -> bool:
    """Whether a browser with windows took the address; one for terminals would show nothing of the page."""
    headless = not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if sys.platform not in ("win32", "darwin") and headless:
        return False
    # In a process of its own, which may stay for as long as the browser does, and keeps nothing of our output. Other
    # users may read the arguments of processes: the address comes by a pipe, as far as it is for us to say.
    nowhere = subprocess.DEVNULL
    try:
        opener = subprocess.Popen(
            [sys.executable, "-I", "-c", _OPEN],
            stdin=subprocess.PIPE,
            stdout=nowhere,
            stderr=nowhere,
            start_new_session=True,
        )
        opener.communicate(url.encode(), _PATIENCE_S)
    except subprocess.TimeoutExpired:
        return True
    except OSError:
        return False
    return opener.returncode == 0
