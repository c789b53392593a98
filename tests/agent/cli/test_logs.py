"""The library's logs: never on a host app's standard output, set up only by our own programs."""

from __future__ import annotations

import subprocess
import sys


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_sets_nothing_up() -> None:
    """Neither the module nor a logger of a host's process configures structlog."""
    ran = _run(
        "import sys, refit_agent.logs as logs; assert 'structlog' not in sys.modules\n"
        "logs.want(); assert 'structlog' not in sys.modules"
    )
    assert ran.stdout == ran.stderr == ""


def test_in_a_host_app_lines_go_through_logging() -> None:
    """Silent by default; the host's own handlers get them with their fields."""
    ran = _run(
        "from refit_agent.logs import get_logger; import structlog, logging\n"
        "log = get_logger('refit_agent.make'); log.warning('lost', key=1)\n"
        "assert not structlog.is_configured()\n"
        "logging.basicConfig(format='%(name)s %(levelname)s %(message)s', level='INFO')\n"
        "log.debug('unseen'); log.info('100% published', key='abc')"
    )
    assert ran.stdout == ""
    assert ran.stderr == "refit_agent.make INFO 100% published key='abc'\n"


def test_in_our_programs_lines_are_json_on_standard_error() -> None:
    """A logger that is made after `want` needs no other set-up."""
    ran = _run(
        "from refit_agent import logs; logs.want('info'); log = logs.get_logger('a.b')\n"
        "log.debug('unseen'); log.info('seen', n=1)"
    )
    assert ran.stdout == ""
    assert '"event": "seen"' in ran.stderr and '"n": 1' in ran.stderr and "unseen" not in ran.stderr
