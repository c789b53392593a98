"""Help, versions, wrong usage and unforeseen errors: each command, with and without --json."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from refit_agent import __version__
from refit_agent.cli.option_types import Target

from .command import Cli

_COMMANDS = [
    ["demo"],
    ["provision"],
    ["path"],
    ["explain"],
    ["verify"],
    ["gpus"],
    ["cache", "list"],
    ["cache", "verify"],
    ["cache", "prune"],
    ["cache", "clear"],
    ["doctor"],
]


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_help(cli: Cli, command: list[str]) -> None:
    """Every command has -h with an example and --json, and the help makes nothing on the disk."""
    ran = cli(*command, "-h")
    assert ran.code == 0 and ran.err == ""
    assert f"Usage: refit-agent {' '.join(command)}" in ran.out
    assert "Example:" in ran.out and "--json" in ran.out
    assert not cli.home.exists()


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_wrong_option(cli: Cli, command: list[str]) -> None:
    """Exit code 2; with --json a document."""
    ran = cli(*command, "--frobnicate", "--json")
    assert ran.code == 2 and ran.err == ""
    assert ran.document["error"]["code"] == "usage" and "--frobnicate" in ran.document["error"]["message"]


def test_root(cli: Cli) -> None:
    """The root lists the commands and the exit codes; wrong and missing commands are usage errors."""
    text = cli("-h").out
    assert all(re.search(rf"^  {command[0]} ", text, re.MULTILINE) for command in _COMMANDS)
    assert "130 stopped by Ctrl+C" in text and "REFIT_AGENT_HOME" in text
    assert cli("--version").out == f"refit-agent {__version__}\n"
    assert cli().code == 2
    wrong = cli("frobnicate")
    assert wrong.code == 2 and "No such command" in wrong.err and wrong.out == ""
    assert cli("frobnicate", "--json").document["error"]["code"] == "usage"
    assert cli("--json").document["error"]["code"] == "usage"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["--json", "gpus"], "refit-agent gpus --json"),
        (["-v", "--json", "provision", "/x"], "refit-agent provision --json"),
        (["cache", "--json", "list"], "refit-agent cache list --json"),
        (["--json"], "refit-agent COMMAND --json"),
    ],
)
def test_json_before_the_command(cli: Cli, arguments: list[str], where: str) -> None:
    """Other programs take it there: this one says where it belongs."""
    ran = cli(*arguments)
    assert ran.code == 2 and ran.document["error"]["code"] == "usage"
    assert ran.document["error"]["message"] == f"--json comes after the command: {where}."


def test_json_with_a_value_before_the_command(cli: Cli) -> None:
    """Which click takes apart before it complains."""
    ran = cli("--json=1", "gpus")
    assert ran.code == 2 and "--json comes after the command: refit-agent gpus --json." in ran.err


_TARGETS = [["provision", "/x"], ["path", "/x", "m"], ["explain", "/x"]]


@pytest.mark.parametrize("command", _TARGETS, ids=lambda command: command[0])
def test_a_target_that_is_none(cli: Cli, command: list[str]) -> None:
    """A slip of the pen is wrong usage, and no word on what this machine has; every form is named."""
    for text in ("banana", "", "cuda:", "cuda:x", "CPU", "0"):
        ran = cli(*command, "--target", text)
        assert ran.code == 2 and ran.out == "", text
        assert all(form in ran.err for form in (repr(text), "cpu", "gpu", "cuda:N", "GPU-"))
        assert ("or all" in ran.err) == (command[0] == "provision")
    assert cli(*command, "--target", "all", "--json").code == (3 if command[0] == "provision" else 2)


@pytest.mark.parametrize("text", ["cpu", "gpu", "cuda", "cuda:7", "GPU-1b2c", "gpu-1b2c", "MIG-GPU-1b2c/1/0"])
def test_a_target_that_another_machine_may_have(text: str) -> None:
    """Whether this one has it is for the selection to say."""
    assert Target().convert(text, None, None) == text


@pytest.mark.parametrize(
    "command", [["provision", "/x", "--deadline"], ["path", "/x", "m", "--deadline"], ["watch", "--every"]], ids=lambda c: c[0]
)  # fmt: skip
def test_seconds_that_are_none(cli: Cli, command: list[str]) -> None:
    """In words that nobody needs a programmer for; not a number is no number either."""
    for text in ("abc", "nan", "1s", ""):
        ran = cli(*command, text)
        assert ran.code == 2 and f"{text!r} is not a number of seconds." in ran.err
    assert "is not in the range" in cli(*command, "-1").err


def test_json_after_the_end_of_options_is_an_argument(cli: Cli) -> None:
    """The form of an error follows the real option."""
    ran = cli("verify", "--", "--json")
    assert ran.code == 3 and ran.out == "" and "error [bundle-missing]" in ran.err


def test_an_unforeseen_error(cli: Cli, tmp_path: Path) -> None:
    """One line and whom to tell; the traceback only with REFIT_AGENT_DEBUG."""
    broken = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "rich.py").write_text("raise RuntimeError('broken\\ninstallation')")
    ran = cli("gpus", **broken)
    assert ran.code == 1
    assert "error [internal]: RuntimeError: broken installation\n  hint: This is a fault in refit-agent" in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in cli("gpus", **broken, REFIT_AGENT_DEBUG="1").err
    assert cli("doctor", **broken).code == 0, "what support wants must not need rich"


def test_without_standard_streams(cli: Cli) -> None:
    """Started without a console, as from a Windows service, it works all the same."""
    import subprocess

    ran = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *cli.command("gpus")], env=cli.env, check=False)
    assert ran.returncode == 0
