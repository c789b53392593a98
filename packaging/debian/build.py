"""Makes the three Debian packages from the standalone folder:

    python3 packaging/debian/build.py [--dist dist] [--output dist]

Needs dpkg-deb and the folders that `packaging/standalone/build.py` made; the interpreter in them writes man page and
completions. debhelper is not used: the folder is finished, and what is left to do is to put it in its place.
Two builds from the same folder give the same bytes: files get the folder's own date (or SOURCE_DATE_EPOCH).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import control
import copyright_file
import folder
import stage

_FILES = Path(__file__).parent / "files"
_UNITS = Path(__file__).parent.parent / "systemd"
_CHANGELOG = Path(__file__).parent.parent.parent / "CHANGELOG.md"
#: No project address exists; whoever distributes the package gives their own.
_MAINTAINER = "Refit Agent developers <refit-agent@example.com>"


def main() -> int:
    """Write the packages and print their paths; the exit code is 0, or 1 with a sentence on standard error."""
    given = _arguments()
    try:
        built = folder.find(given.dist, os.environ)
        given.output.mkdir(parents=True, exist_ok=True)
        for package in control.PACKAGES:
            if package.part in built.parts:
                print(_make(package, built, given))
    except (folder.FolderError, OSError, subprocess.CalledProcessError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make the Debian packages from the standalone folder.")
    parser.add_argument("--dist", type=Path, default=Path("dist"), help="where the standalone folders are (dist)")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="where the packages go (dist)")
    parser.add_argument("--revision", default="1", help="Debian revision, the part after the hyphen (1)")
    parser.add_argument("--maintainer", default=_MAINTAINER, help="Name <address> of whoever distributes the package")
    parser.add_argument("--level", type=int, default=6, choices=range(10), help="xz level; 0 is quick and large (6)")
    return parser.parse_args()


def _make(package: control.Package, built: folder.Built, given: argparse.Namespace) -> Path:
    version = f"{built.version}-{given.revision}"
    output: Path = given.output / f"{package.name}_{version}_amd64.deb"
    with tempfile.TemporaryDirectory(dir=given.output, prefix=".deb-") as scratch:
        tree = stage.Tree(Path(scratch) / "tree", built.date)
        for name, source in built.files(package.part):
            tree.link(f"usr/lib/refit-agent/{name}", source)
        if package.part == "core":
            _add_what_the_system_sees(tree, built)
        document = f"usr/share/doc/{package.name}"
        tree.write(f"{document}/copyright", copyright_file.text(built, package.part).encode())
        tree.write_gz(
            f"{document}/changelog.Debian.gz",
            control.changelog(package, version, given.maintainer, _CHANGELOG.read_text(), built.date),
        )
        sbom = built.sbom(package.part)
        if sbom is not None:
            tree.write(f"{document}/sbom.cdx.json", sbom.read_bytes())
        overrides = _FILES / f"{package.name}.lintian-overrides"
        tree.write(f"usr/share/lintian/overrides/{package.name}", overrides.read_bytes())
        size = tree.installed_kib()
        tree.control("md5sums", tree.md5sums(), 0o644)
        for script in ("preinst", "postinst", "prerm", "postrm"):
            source = _FILES / f"{package.name}.{script}"
            if source.exists():
                tree.control(script, _with_includes(source.read_text()).encode(), 0o755)
        if package.conffiles:
            tree.control("conffiles", "".join(f"/{name}\n" for name in package.conffiles).encode(), 0o644)
        fields = control.fields(package, version, given.maintainer, size, control.depends(built.glibc, built.glibcxx))
        tree.control("control", fields.encode(), 0o644)
        tree.finish()
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", f"-z{given.level}", "--build", str(tree.root), str(output)]
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(built.date)}
        if shutil.which(command[0]) is None:
            raise folder.FolderError("dpkg-deb is needed (Debian: apt-get install dpkg)")
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return output


def _with_includes(script: str) -> str:
    """A line "#INCLUDE NAME" stands for that file: maintainer scripts cannot share one otherwise."""
    return re.sub(r"^#INCLUDE (.+)$", lambda m: (_FILES / m[1]).read_text().rstrip(), script, flags=re.MULTILINE)


def _add_what_the_system_sees(tree: stage.Tree, built: folder.Built) -> None:
    """The command, units, manual pages, completions and settings."""
    tree.symlink("usr/bin/refit-agent", "../lib/refit-agent/bin/refit-agent")
    for unit in ("refit-agent.service", "refit-agent.socket"):
        tree.write(f"usr/lib/systemd/user/{unit}", (_UNITS / unit).read_bytes())
    written = built.run_script(Path(__file__).with_name("texts.py"))
    tree.write_gz("usr/share/man/man1/refit-agent.1.gz", written["man"])
    tree.write_gz("usr/share/man/man5/refit-agent-settings.5.gz", (_FILES / "refit-agent-settings.5").read_text())
    tree.write("usr/share/bash-completion/completions/refit-agent", written["bash"].encode())
    tree.write("usr/share/zsh/vendor-completions/_refit-agent", written["zsh"].encode())
    tree.write("usr/share/fish/vendor_completions.d/refit-agent.fish", written["fish"].encode())
    tree.write("etc/refit-agent/settings.toml", (_FILES / "settings.toml").read_bytes())


if __name__ == "__main__":
    sys.exit(main())
