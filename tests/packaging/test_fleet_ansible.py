"""The Ansible role, run by ansible-playbook against a Debian in a folder: install, settings, bundles, engines, removal."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bundles import edit, make_bundle
from fleet_machine import Machine, ansible_environment, require_playbook
from fleet_peers import FLEET, Bucket, Registry, oci_registry, s3_bucket
from refit_agent.authoring.signing import make_key, sign_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BUNDLES = "/var/lib/refit-agent/bundles"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as one:
        yield one


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with s3_bucket(tmp_path_factory.mktemp("s3")) as one:
        yield one


class Play:
    """Runs of the role on one machine."""

    def __init__(
        self, machine: Machine, packages: tuple[list[Path], list[Path]], work: Path, registry: Registry
    ) -> None:
        self.playbook = require_playbook()
        self.machine, self.work, self.registry = machine, work, registry
        debs, machine.own = packages
        self.env, self.inventory = ansible_environment(machine, work)
        self.public = make_key(str(work / "key.pem"))
        machine.write(
            "/etc/containers/registries.conf.d/here.conf",
            f'[[registry]]\nlocation = "127.0.0.1:{registry.port}"\ninsecure = true\n',
        )
        self.variables: dict[str, Any] = {
            "refit_agent_packages": [str(path) for path in debs],
            "refit_agent_settings": {"cache_quota": "5G", "warm": False},
            "refit_agent_policy": {"register_from": [BUNDLES]},
            "refit_agent_users": ["refit-agent", "app"],
        }

    def publish(self, bundle: Path, version: str) -> str:
        edit(bundle, lambda d: d["app"].update(version=version))
        sign_bundle(str(bundle), str(self.work / "key.pem"))
        return self.registry.push(bundle, f"photo/bundle:{version}")

    def run(self, *options: str, **variables: Any) -> tuple[int, dict[str, int], str]:
        """The exit code, the recap of the one host, and all that was said."""
        book = self.work / "play.yml"
        roles = [{"role": "refit_agent", "vars": {**self.variables, **variables}}]
        book.write_text(yaml.safe_dump([{"hosts": "gpu", "roles": roles}]))
        done = subprocess.run(
            [self.playbook, "-i", str(self.inventory), str(book), *options],
            env=self.env, cwd=self.work, capture_output=True, text=True,
        )  # fmt: skip
        recap = re.search(r"^node\s+: (.*)$", done.stdout, re.MULTILINE)
        assert recap, done.stdout + done.stderr
        counts = {k: int(v) for k, v in (pair.split("=") for pair in recap[1].split())}
        return done.returncode, counts, done.stdout + done.stderr

    def bundle(self, **more: Any) -> list[dict[str, Any]]:
        return [{"name": "photo", "public_keys": [self.public], **more}]

    def current(self, name: str = "photo") -> str:
        document = self.machine.run(f"cat {BUNDLES}/{name}/current/bundle.json").stdout
        version: str = json.loads(document)["app"]["version"]
        return version


@pytest.fixture
def play(
    fleet_base: Machine, fleet_packages: tuple[list[Path], list[Path]], registry: Registry, tmp_path: Path
) -> Iterator[Play]:
    require_playbook()
    work = tmp_path / "work"
    work.mkdir()
    yield Play(fleet_base.copy(tmp_path / "machine"), fleet_packages, work, registry)
    subprocess.run(["rm", "-rf", str(tmp_path / "machine")], check=True)


def test_a_machine_from_bare_to_warm_and_back(play: Play, bucket: Bucket, tmp_path: Path) -> None:
    machine = play.machine
    machine.run("true")  # makes the places for what is seen of this machine
    before = machine.paths()
    bundle = make_bundle(tmp_path / "bundle")
    source = play.publish(bundle, "1.0")

    code, counts, said = play.run("--check", refit_agent_bundles=play.bundle(source=source))
    assert code == 0 and counts["changed"] > 5, said
    assert machine.paths() == before, "check mode changes nothing"

    code, counts, said = play.run(refit_agent_bundles=play.bundle(source=source))
    assert code == 0, said
    assert play.current() == "1.0"
    assert (machine.root / "etc/refit-agent/settings.toml").read_text().splitlines()[1:] == [
        'cache_quota = "5G"',
        "warm = false",
    ]
    assert (machine.root / "etc/refit-agent/policy.toml").read_text().splitlines()[1:] == [f'register_from = ["{BUNDLES}"]']  # fmt: skip
    for user, home in (("refit-agent", "/var/lib/refit-agent"), ("app", "/home/app")):
        hit = machine.run(
            f"runuser -u {user} -- env HOME={home} REFIT_AGENT_SOCKET= refit-agent path --json {BUNDLES}/photo/current mlp"
        )
        assert json.loads(hit.stdout)["hit"] is True, "the play made it for this user"
        assert json.loads(hit.stdout)["path"].startswith(f"{home}/.cache/refit-agent/")

    code, counts, said = play.run(refit_agent_bundles=play.bundle(source=source))
    assert (code, counts["changed"]) == (0, 0), said
    code, counts, said = play.run("--check", refit_agent_bundles=play.bundle(source=source))
    assert (code, counts["changed"]) == (0, 0), said

    # Tampered with: the play fails, and the machine keeps what it had.
    play.publish(bundle, "2.0")
    edit(bundle, lambda d: d["app"].update(version="6.6.6"))
    code, _, said = play.run(refit_agent_bundles=play.bundle(source=play.registry.push(bundle, "photo/bundle:2.0")))
    assert code != 0 and "is refused" in said and play.current() == "1.0"
    # Down: the play goes on and says so.
    code, counts, said = play.run(refit_agent_bundles=play.bundle(source="oci://127.0.0.1:1/photo/bundle:2.0"))
    assert code == 0 and "the bundle from before stays in place" in said and play.current() == "1.0"

    # From S3, under another name: the old one goes.
    edit(bundle, lambda d: d["app"].update(version="3.0"))
    sign_bundle(str(bundle), str(play.work / "key.pem"))
    other = {"name": "retouch", "public_keys": [play.public], "source": bucket.push(bundle, "retouch")}
    code, _, said = play.run(refit_agent_bundles=[other], refit_agent_s3_environment=bucket.env)
    assert code == 0 and play.current("retouch") == "3.0", said
    assert [p.name for p in (machine.root / BUNDLES.lstrip("/")).iterdir()] == ["retouch"]
    assert (machine.root / "etc/refit-agent/s3.env").stat().st_mode & 0o777 == 0o600
    assert bucket.env["AWS_SECRET_ACCESS_KEY"] in (machine.root / "etc/refit-agent/s3.env").read_text()

    code, _, said = play.run(refit_agent_state="absent")
    assert code == 0, said
    assert not (machine.root / "usr/bin/refit-agent").exists()
    assert play.current("retouch") == "3.0", "bundles and engines stay without purge"
    assert (machine.root / "home/app/.cache/refit-agent/engines").is_dir()
    code, counts, said = play.run(refit_agent_state="absent")
    assert (code, counts["changed"]) == (0, 0), said


def test_purge_leaves_nothing(play: Play, tmp_path: Path) -> None:
    source = play.publish(make_bundle(tmp_path / "bundle"), "1.0")
    play.machine.run("true")
    before = play.machine.paths()
    code, _, said = play.run(refit_agent_bundles=play.bundle(source=source))
    assert code == 0, said
    code, _, said = play.run(refit_agent_state="absent", refit_agent_purge=True)
    assert code == 0, said
    # The user's own, which other programs share.
    shared = {f"./home/app/{name}" for name in (".cache", ".local", ".local/state")}
    assert play.machine.paths() - before - shared == set()
    code, counts, said = play.run(refit_agent_state="absent", refit_agent_purge=True)
    assert (code, counts["changed"]) == (0, 0), said


def test_purge_stops_the_services_of_the_users(play: Play, tmp_path: Path) -> None:
    """Wherever they listen: root's session, whose variables runuser leaves, knows another place than the user's."""
    code, _, said = play.run(refit_agent_bundles=[])
    assert code == 0, said
    tasks = yaml.safe_load((FLEET / "ansible/roles/refit_agent/tasks/remove.yml").read_text())
    task = next(t for t in tasks if t["name"] == "Remove the users' engines")
    words = {"item": "app", "refit_agent_uninstall": task["vars"]["refit_agent_uninstall"]}
    command = [words[w[3:-3]] if w.startswith("{{") else w for w in task["ansible.builtin.command"]["argv"]]
    given = {"HOME": "/home/app", **{k: v for k, v in task["environment"].items() if k != "HOME"}}
    given = {"XDG_RUNTIME_DIR": "/run/user/0", "REFIT_AGENT_HOME": "/root/agent", **given}
    line = shlex.join(["env", *(f"{k}={v}" for k, v in given.items()), *command])
    for prepare, place in (
        ("true", "/home/app/.local/state/refit-agent/run"),
        ("install -d -o app -m 700 /run/user/$(id -u app)", "/run/user/$(id -u app)/refit-agent"),
    ):
        done = play.machine.run(
            f"{prepare}; runuser -u app -- env HOME=/home/app refit-agent serve 2>/dev/null & "
            f"for i in $(seq 200); do test -S {place}/agent.sock && break; sleep 0.1; done; "
            f"test -S {place}/agent.sock && {line} && wait && test ! -e {place}/agent.sock"
        )
        assert json.loads(done.stdout)["service"]["pid"] > 0


def test_a_bundle_cannot_be_named_out_of_its_folder(play: Play) -> None:
    for name in ("../x", "a/b", ".hidden", "$(id)"):
        one = {"name": name, "source": "oci://r.example.com/b", "public_keys": ["ed25519:x"]}
        code, counts, said = play.run(refit_agent_bundles=[one])
        assert code != 0 and "cannot be the name of a bundle" in said
        assert counts["changed"] == 0
