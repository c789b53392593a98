"""The Debian packages as files, made from a small stand-in for the standalone folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from debian_packages import BUILD, ROOT, UNITS, build_packages, make_fake_folder, scrubbed

if sys.version_info >= (3, 11):
    import tomllib

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The packages of core and ONNX Runtime."""
    work = tmp_path_factory.mktemp("built")
    make_fake_folder(work / "dist")
    return build_packages(work / "dist", work / "out")


@pytest.fixture(scope="module")
def tree(built: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core's package, unpacked, with its control files in DEBIAN."""
    root = tmp_path_factory.mktemp("tree")
    subprocess.run(["dpkg-deb", "-R", built[0], root], check=True)
    return root


def field(package: Path, name: str) -> str:
    return subprocess.run(["dpkg-deb", "-f", package, name], capture_output=True, text=True, check=True).stdout.strip()


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def test_control_fields_tell_what_is_needed(built: list[Path]) -> None:
    """The system's libraries from parts.json; the very same build of the core for a runtime; no Python."""
    core, ort = built
    assert core.name == "refit-agent_0.1.0-1_amd64.deb"
    assert field(core, "Depends") == "libc6 (>= 2.34), libgcc-s1, libstdc++6 (>= 9.3)"
    assert field(ort, "Depends").startswith("refit-agent (= 0.1.0-1), libc6 (>= 2.34)")
    assert "python" not in (field(core, "Depends") + field(core, "Recommends")).lower()
    assert "example.com" in field(core, "Maintainer")
    assert int(field(core, "Installed-Size")) > 40


def test_the_distributor_says_who_maintains_and_which_revision(tmp_path: Path) -> None:
    """In the control file and in the changelog."""
    make_fake_folder(tmp_path)
    package = build_packages(tmp_path, tmp_path, "--maintainer", "Ops <ops@example.org>", "--revision", "7~ops")[0]
    assert (field(package, "Maintainer"), field(package, "Version")) == ("Ops <ops@example.org>", "0.1.0-7~ops")
    subprocess.run(["dpkg-deb", "-x", package, tmp_path / "x"], check=True)
    text = gzip.decompress((tmp_path / "x/usr/share/doc/refit-agent/changelog.Debian.gz").read_bytes()).decode()
    assert text.startswith("refit-agent (0.1.0-7~ops) unstable; urgency=medium\n")
    assert "\n -- Ops <ops@example.org>  " in text


def test_two_builds_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From copies of the folder with other modes and later dates, at other places, under another umask."""
    make_fake_folder(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for path in (tmp_path / "two").rglob("*"):
        path.chmod(0o755 if path.is_dir() or "bin" in path.parts else 0o600)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    hashes = []
    for name, umask in (("one", 0o022), ("two", 0o077)):
        before = os.umask(umask)
        try:
            done = subprocess.run(
                [sys.executable, BUILD, "--dist", tmp_path / name, "--output", tmp_path / f"{name}-out"],
                capture_output=True,
                text=True,
                env=scrubbed() | {"SOURCE_DATE_EPOCH": "1767225600"},
            )
        finally:
            os.umask(before)
        assert done.returncode == 0, done.stderr
        hashes.append({Path(p).name: hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in done.stdout.split()})
    assert len(hashes[0]) == 2
    assert hashes[0] == hashes[1]


def test_md5sums_and_conffiles_cover_every_file_once(tree: Path) -> None:
    """Symbolic links have no sum; conffiles are not summed, since their owner may change them."""
    summed = {}
    for line in (tree / "DEBIAN/md5sums").read_text().splitlines():
        digest, _, name = line.partition("  ")
        summed[name] = digest
    conffiles = {name[1:] for name in (tree / "DEBIAN/conffiles").read_text().split()}
    files = {p.relative_to(tree) for p in tree.rglob("*") if p.is_file() and not p.is_symlink()}
    assert {str(f) for f in files if f.parts[0] != "DEBIAN"} == summed.keys() | conffiles
    assert not summed.keys() & conffiles
    for name, digest in summed.items():
        assert hashlib.md5((tree / name).read_bytes()).hexdigest() == digest


def test_everything_is_in_its_place(tree: Path) -> None:
    """The command leads to the launcher; the units are those of the repository; licences are in the copyright file."""
    assert os.readlink(tree / "usr/bin/refit-agent") == "../lib/refit-agent/bin/refit-agent"
    for unit in UNITS.iterdir():
        assert (tree / "usr/lib/systemd/user" / unit.name).read_bytes() == unit.read_bytes()
    copyright_file = (tree / "usr/share/doc/refit-agent/copyright").read_text()
    assert "usr/lib/refit-agent/lib/click/*\n usr/lib/refit-agent/lib/click-8.1.8.dist-info/*" in copyright_file
    assert "Copyright: Copyright 2014 Somebody" in copyright_file
    assert "\n .\n Do as you like.\n" in copyright_file
    assert not (tree / "usr/lib/refit-agent/share/refit-agent/licences").exists()
    assert json.loads((tree / "usr/share/doc/refit-agent/sbom.cdx.json").read_text()) == {}


def test_a_component_without_known_files_is_refused(tmp_path: Path) -> None:
    """Its licence would stand in the copyright file for nothing, and its files would count as ours."""
    root = make_fake_folder(tmp_path)
    parts = root / "share/refit-agent/parts.json"
    document = json.loads(parts.read_text())
    document["parts"]["core"] = [n for n in document["parts"]["core"] if "lib/click" not in n]
    parts.write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, BUILD, "--dist", tmp_path, "--output", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "no file of click was found" in done.stderr


@pytest.mark.parametrize("damage", ["nothing", "two", "parts"])
def test_without_a_sound_folder_it_says_what_is_wrong(tmp_path: Path, damage: str) -> None:
    """One sentence, no traceback, no package."""
    if damage != "nothing":
        root = make_fake_folder(tmp_path)
        if damage == "two":
            shutil.copytree(root, tmp_path / "refit-agent-0.0.9-linux-x86_64")
        else:
            (root / "share/refit-agent/parts.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, BUILD, "--dist", tmp_path, "--output", tmp_path / "out"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "packaging/standalone/build.py" in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_maintainer_scripts_are_sound_shell(tree: Path) -> None:
    """As they are in the package, with what they include."""
    need("shellcheck")
    for name in ("postinst", "prerm", "postrm"):
        text = (tree / "DEBIAN" / name).read_text()
        assert "#INCLUDE" not in text and text.startswith("#!/bin/sh\nset -e\n")
        done = subprocess.run(["shellcheck", tree / "DEBIAN" / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_a_process_that_ends_while_services_are_looked_for_is_no_complaint(tmp_path: Path) -> None:
    """apt would show it, and whoever upgrades would look for a fault."""
    for number, words in ((7, "refit_agent\0serve\0"), (8, None), (9, "refit_agent\0status\0")):
        process = tmp_path / str(number)
        process.mkdir()
        (process / "exe").symlink_to("/usr/lib/refit-agent/python/bin/python3")
        (process / "root").symlink_to("/")
        if words is not None:
            (process / "cmdline").write_text(words)
    text = (ROOT / "packaging/debian/files/running_services.sh").read_text().replace("/proc/", f"{tmp_path}/")
    done = subprocess.run(["sh", "-ec", f"{text}\nrunning_services"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


def manual(tree: Path, name: str, place: Path) -> Path:
    page = place / name.removesuffix(".gz")
    page.write_bytes(gzip.decompress((tree / "usr/share/man" / f"man{name.split('.')[1]}" / name).read_bytes()))
    return page


@pytest.mark.parametrize("name", ["refit-agent.1.gz", "refit-agent-settings.5.gz"])
def test_manual_pages_are_clean(tree: Path, tmp_path: Path, name: str) -> None:
    """groff has no warning and mandoc no complaint."""
    need("groff", "mandoc")
    page = manual(tree, name, tmp_path)
    groff = subprocess.run(["groff", "-man", "-ww", "-Tutf8", page], capture_output=True, text=True)
    assert (groff.returncode, groff.stderr) == (0, "")
    lint = subprocess.run(["mandoc", "-Tlint", page], capture_output=True, text=True)
    assert lint.stdout == ""


def test_the_manual_has_every_command_with_every_option(tree: Path, tmp_path: Path) -> None:
    """It is made from the commands themselves; so this walks them anew and looks for each in the rendered page."""
    need("mandoc")
    import click

    from refit_agent.cli.group import root

    page = manual(tree, "refit-agent.1.gz", tmp_path)
    shown = subprocess.run(["mandoc", "-Tascii", "-Owidth=400", page], capture_output=True, text=True).stdout
    shown = re.sub(r".\x08", "", shown)

    def visit(command: click.Command, path: tuple[str, ...]) -> int:
        options = [o for p in command.params if isinstance(p, click.Option) and not p.hidden for o in p.opts]
        assert not path or re.search(rf"^   {re.escape(' '.join(path))}\b", shown, re.MULTILINE), path
        for option in options:
            assert option in shown, (path, option)
        if not isinstance(command, click.Group):
            return 1
        context = click.Context(command)
        children = {name: command.get_command(context, name) for name in command.list_commands(context)}
        return 1 + sum(visit(child, (*path, name)) for name, child in children.items() if child is not None)

    assert visit(root, ()) > 30
    for heading in ("EXIT STATUS", "ENVIRONMENT", "FILES", "NOTES"):
        assert f"\n{heading}\n" in shown
    assert "REFIT_AGENT_CACHE_QUOTA" in shown and "9 the network" in shown


BASH = """
. {file}
COMP_WORDS=(refit-agent {words}); COMP_CWORD={last}
$(complete -p refit-agent | sed -E 's/.* -F ([^ ]+) .*/\\1/') refit-agent
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# compdef and compadd belong to zsh's completion, which needs a terminal: here they are what tells us the answer.
ZSH = """
autoload -Uz compinit; compinit -u -D
compadd() {{ :; }}
_describe() {{ for word in "${{(@P)3}}"; do print -r -- "${{word%%:*}}"; done }}
words=(refit-agent {words}); CURRENT=$(({last} + 1))
. {file} >/dev/null 2>&1
_refit_agent_completion
"""
FISH = """
source {file}
complete --do-complete "refit-agent {words}" | string replace --regex '\\t.*' ''
"""


@pytest.mark.parametrize(
    ("words", "expected"), [("pro", "provision"), ("cache ver", "verify"), ("bundle add-m", "add-model")]
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(tree: Path, tmp_path: Path, shell: str, words: str, expected: str) -> None:
    """With the files of the package and the program of this environment."""
    need(shell)
    file = (
        tree
        / {
            "bash": "usr/share/bash-completion/completions/refit-agent",
            "zsh": "usr/share/zsh/vendor-completions/_refit-agent",
            "fish": "usr/share/fish/vendor_completions.d/refit-agent.fish",
        }[shell]
    )
    script = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    quick = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    environment = scrubbed() | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    text = script.format(file=file, words=words, last=len(words.split()))
    done = subprocess.run([shell, *quick, "-c", text], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [expected], done.stderr


def test_every_setting_in_the_conffile_is_off_and_explained() -> None:
    """As shipped it sets nothing; with the marks taken away every setting is there, sound, and in the manual page."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    from refit_agent.settings import KEYS

    text = (ROOT / "packaging/debian/files/settings.toml").read_text()
    assert tomllib.loads(text) == {}
    values = tomllib.loads(re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE))
    page = (ROOT / "packaging/debian/files/refit-agent-settings.5").read_text()
    assert list(values) == list(KEYS)
    for name, key in KEYS.items():
        assert key.decode(values[name]) != key.default
        assert re.search(rf'^\.BR {name} ".*?^\.BR {key.variable} \.$.*?^Default:', page, re.MULTILINE | re.DOTALL)
    assert len(re.findall(r'^\.BR \w+ " \(', page, re.MULTILINE)) == len(KEYS)
