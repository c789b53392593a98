"""The PowerShell scripts for Windows: their grammar, and the rules that PSScriptAnalyzer would hold them to.

No PowerShell runs here. What it means for a script to be right beyond that, only Windows can tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WINDOWS = Path(__file__).resolve().parents[2] / "packaging" / "windows"
SCRIPTS = sorted([*WINDOWS.glob("*.ps1"), *WINDOWS.glob("*.psm1")])
#: Of those that Microsoft approves, what is in use.
VERBS = {"Add", "ConvertTo", "Get", "Invoke", "New", "Register", "Resolve", "Show", "Stop", "Test", "Unregister"}
#: Of Windows PowerShell 5.1, and of the module ScheduledTasks.
COMMANDS = {
    "Disable-ScheduledTask", "Export-ModuleMember", "Get-Date", "Get-Process", "Get-ScheduledTask", "Import-Module", "Join-Path",
    "New-Object", "New-ScheduledTask", "New-ScheduledTaskAction", "New-ScheduledTaskPrincipal", "New-ScheduledTaskSettingsSet",
    "New-ScheduledTaskTrigger", "New-TimeSpan", "Out-Null", "Register-ScheduledTask", "Resolve-Path", "Set-StrictMode", "Split-Path",
    "Start-ScheduledTask", "Start-Sleep", "Stop-Process", "Stop-ScheduledTask", "Test-Path", "Unregister-ScheduledTask", "Where-Object",
    "ForEach-Object", "ConvertFrom-Json", "Write-Output", "Write-Progress", "Write-Verbose",
}  # fmt: skip


def _tree(path: Path) -> Any:
    parsers = pytest.importorskip("tree_sitter", reason="tree-sitter is not installed")
    grammar = pytest.importorskip("tree_sitter_powershell", reason="tree-sitter-powershell is not installed")
    return parsers.Parser(parsers.Language(grammar.language())).parse(path.read_bytes())


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in node.children:
        yield from _nodes(child)


def _words(path: Path, kind: str) -> list[str]:
    return [n.text.decode() for n in _nodes(_tree(path).root_node) if n.type == kind]


def _functions() -> set[str]:
    return {name for path in SCRIPTS for name in _words(path, "function_name")}


def test_all_scripts_are_there() -> None:
    assert {p.name for p in SCRIPTS} == {
        "RefitAgent.psm1",
        "Register-RefitAgent.ps1",
        "Unregister-RefitAgent.ps1",
        "Add-Bundle.ps1",
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_the_grammar_is_right(path: Path) -> None:
    """No part of a script that the grammar does not know, and nothing missing."""
    faults = [(n.start_point, n.text[:60]) for n in _nodes(_tree(path).root_node) if n.is_error or n.is_missing]
    assert not faults


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_a_script_stops_at_its_first_fault(path: Path) -> None:
    """A command that fails, or a variable that was never set, must not be passed over in silence."""
    text = path.read_text("ascii")
    assert "\nSet-StrictMode -Version 2.0\n" in text
    assert "\n$ErrorActionPreference = 'Stop'\n" in text


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_commands_are_known_and_spelled_out(path: Path) -> None:
    """No alias, which a user may have changed, and no function that is defined nowhere."""
    known = COMMANDS | _functions()
    called = _words(path, "command_name")
    assert called
    assert {name for name in called if name not in known} == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_functions_have_approved_verbs_and_say_what_they_do(path: Path) -> None:
    for node in _nodes(_tree(path).root_node):
        if node.type != "function_statement":
            continue
        (name,) = (c.text.decode() for c in node.children if c.type == "function_name")
        verb, _, noun = name.partition("-")
        assert verb in VERBS, name
        assert noun and noun[0].isupper(), name
        assert ".SYNOPSIS" in node.text.decode(), f"{name} has no help"
        assert "[CmdletBinding(" in node.text.decode(), name


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.suffix == ".ps1"], ids=lambda p: p.name)
def test_scripts_have_help_for_every_parameter(path: Path) -> None:
    text = path.read_text("ascii")
    head, _, body = text.partition("#>")
    for part in (".SYNOPSIS", ".DESCRIPTION", ".EXAMPLE", ".OUTPUTS", "not run on Windows yet"):
        assert part in head, part
    parameters = re.findall(r"^    \[.*?\]\s\$(\w+)", body.partition("\n)\n")[0], re.MULTILINE)
    assert parameters
    assert sorted(re.findall(r"^\.PARAMETER (\w+)$", head, re.MULTILINE)) == sorted(parameters)


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.suffix == ".ps1"], ids=lambda p: p.name)
def test_scripts_end_with_an_exit_code(path: Path) -> None:
    """Windows PowerShell ends a script that fell off its end with 0, whatever went wrong before."""
    assert re.search(r"^exit (0|\$code)\n\Z", path.read_text("ascii"), re.MULTILINE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_nothing_of_later_versions_is_used(path: Path) -> None:
    """Windows has PowerShell 5.1 and nothing newer by itself."""
    text = path.read_text("ascii")
    for pattern in (r"\?\?", r"\?\.", r"(?<![|&])&&", r"\|\|", r"-Parallel\b", r"-AsHashtable\b", r"\$IsWindows\b", r"ArgumentList\.Add", r"Join-Path [^\n]*-AdditionalChildPath"):  # fmt: skip
        assert not re.search(pattern, text), pattern


def test_what_is_exported_is_defined() -> None:
    module = WINDOWS / "RefitAgent.psm1"
    listed = re.search(r"Export-ModuleMember -Function @\((.*?)\)", module.read_text("ascii"), re.DOTALL)
    assert listed is not None
    assert sorted(re.findall(r"'([\w-]+)'", listed[1])) == sorted(_words(module, "function_name"))


def test_the_task_is_for_this_user_alone_and_never_ends_by_itself() -> None:
    """What the README promises of the scheduled task."""
    text = (WINDOWS / "Register-RefitAgent.ps1").read_text("ascii")
    for part in (
        "-AtLogOn -User $User.Name", "-LogonType Interactive -RunLevel Limited", "ExecutionTimeLimit         = [TimeSpan]::Zero",
        "MultipleInstances          = 'IgnoreNew'", "DontStopIfGoingOnBatteries = $true", "AllowStartIfOnBatteries    = $true",
        "'python\\pythonw.exe'", "-m refit_agent serve",
    ):  # fmt: skip
        assert part in text, part


def test_the_first_app_of_several_with_one_version_keeps_the_task() -> None:
    """Taken over by the second, it would be gone with the second, and the first had no service."""
    text = (WINDOWS / "Register-RefitAgent.ps1").read_text("ascii")
    compared = re.findall(
        r"Get-RefitAgentVersion -Folder (\$\w+)\) (-\w+) \(Get-RefitAgentVersion -Folder (\$\w+)\)", text
    )
    assert compared == [("$other", "-ge", "$root")]


def test_the_commands_of_the_agent_exist() -> None:
    """The scripts call the agent with commands and options that it has."""
    from click import Group, Option

    from refit_agent.cli.group import root

    said = {p.name: p.read_text("ascii") for p in SCRIPTS}
    wanted = {
        "status": ("RefitAgent.psm1", ["--json"]),
        "register": ("Add-Bundle.ps1", ["--public-key"]),
        "provision": ("Add-Bundle.ps1", ["--progress", "--deadline", "--public-key"]),
        "uninstall": ("Unregister-RefitAgent.ps1", ["--purge", "--yes"]),
    }
    assert isinstance(root, Group)
    with root.make_context("refit-agent", ["status"]) as context:
        for name, (file, options) in wanted.items():
            command = root.get_command(context, name)
            assert command is not None and f"'{name}'" in said[file], name
            known = {o for p in command.params if isinstance(p, Option) for o in p.opts}
            for option in options:
                assert option in known and option in said[file], (name, option)
