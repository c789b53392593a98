"""`refit-agent serve`: the service, in the foreground."""

from __future__ import annotations

import click

from refit_agent.cli.start_service import start_service


@click.command(short_help="Run the service for this user's apps.")
def serve() -> int:
    """Serve this user's apps on a Unix socket, $XDG_RUNTIME_DIR/refit-agent/agent.sock (on Windows at
    a port of loopback), until SIGTERM.

    It makes engines for all apps, one at a time, each once; keeps leases; and makes ready in the background
    what registered bundles will need. A second one says so and exits with code 8. Logs go to the state folder,
    or to the terminal if there is one.

    \b
    Environment: REFIT_AGENT_SOCKET names another socket; REFIT_AGENT_WARM=0 turns background work off,
    REFIT_AGENT_WARM_ON_BATTERY=1 allows it on battery, REFIT_AGENT_WARM_BUSY_PERCENT (20) says from which
    GPU load on it waits.

    \b
    Example:
      systemctl --user enable --now refit-agent.socket
    """
    return start_service()
