"""The library's logs: never on a host app's standard output, set up only by our own programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .command import Cli


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_sets_nothing_up() -> None:
    """Neither the module nor a logger of a host's process configures structlog."""
    ran = _run(
        "import sys, refit_agent.logs as logs; assert 'structlog' not in sys.modules\n"
        "logs.want(); assert 'structlog' not in sys.modules"
    )
    assert ran.stdout == ran.stderr == ""


def test_a_level_that_is_none_is_said_once_and_hinders_nothing(cli: Cli, bundle: Path) -> None:
    """Whoever set it would look in vain for the lines; a command that says more is not asked for its level."""
    words = "REFIT_AGENT_LOG_LEVEL is 'loud', which is not one of debug, info, warning, error. 'warning' is taken in its place.\n"  # fmt: skip
    for command in (["provision", bundle, "--progress", "none"], ["path", bundle, "classifier"], ["gpus", "--json"]):
        ran = cli(*command, REFIT_AGENT_LOG_LEVEL="loud")
        assert (ran.code, ran.err) == (0, words), command
    assert cli("-v", "gpus", REFIT_AGENT_LOG_LEVEL="loud").err == ""
    assert cli("gpus", REFIT_AGENT_LOG_LEVEL="").err == cli("gpus", REFIT_AGENT_LOG_LEVEL="ERROR").err == ""


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


def test_a_host_s_own_structlog_prints_none_of_our_lines() -> None:
    """Its standard output may be a protocol."""
    ran = _run(
        "import structlog; structlog.configure(processors=[structlog.processors.JSONRenderer()])\n"
        "from refit_agent.logs import get_logger; get_logger('refit_agent.make').warning('lost', key=1)"
    )
    assert ran.stdout == ran.stderr == ""


def test_in_our_programs_lines_are_json_on_standard_error() -> None:
    """A logger that is made after `want` needs no other set-up."""
    ran = _run(
        "from refit_agent import logs; logs.want('info'); log = logs.get_logger('a.b')\n"
        "log.debug('unseen'); log.info('seen', n=1)"
    )
    assert ran.stdout == ""
    assert '"event": "seen"' in ran.stderr and '"n": 1' in ran.stderr and "unseen" not in ran.stderr
