"""The DaemonSet's containers, one after the other, on an image made as the Containerfile says; and an app beside them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import MODEL, edit, make_bundle
from fleet_machine import Machine, Pod, auth_file, build_image, manifests
from fleet_peers import Registry, oci_registry
from refit_agent.authoring.signing import make_key, sign_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as one:
        yield one


@pytest.fixture(scope="module")
def image(
    fleet_base: Machine,
    fleet_packages: tuple[list[Path], list[Path]],
    tmp_path_factory: pytest.TempPathFactory,
    registry: Registry,
) -> Iterator[Machine]:
    work = tmp_path_factory.mktemp("image")
    made = fleet_base.copy(work / "root")
    debs, made.own = fleet_packages
    build_image(made, debs)
    made.write(
        "/etc/containers/registries.conf.d/here.conf",
        f'[[registry]]\nlocation = "127.0.0.1:{registry.port}"\ninsecure = true\n',
    )
    yield made
    subprocess.run(["rm", "-rf", str(work)], check=True)


class Cluster:
    """One node, with the DaemonSet's pod and the example app's."""

    def __init__(self, image: Machine, registry: Registry, work: Path) -> None:
        self.image, self.registry, self.work = image, registry, work
        self.node = work / "node"
        self.public = make_key(str(work / "key.pem"))
        (settings,) = manifests("settings.yaml")
        self.data = {
            "refit-agent-settings": settings["data"] | {"bundle-keys.pub": self.public + "\n"},
            "registry-credentials": {".dockerconfigjson": auth_file(f"127.0.0.1:{registry.port}")},
        }
        self.pods = 0

    def publish(self, bundle: Path, version: str) -> str:
        edit(bundle, lambda d: d["app"].update(version=version))
        sign_bundle(str(bundle), str(self.work / "key.pem"))
        return self.registry.push(bundle, f"photo/bundle:{version}")

    def pod(self, manifest: str) -> Pod:
        self.pods += 1
        (document,) = manifests(manifest)
        return Pod(self.image, document["spec"]["template"], self.work / f"pod{self.pods}", self.node, self.data)

    def started(self, source: str) -> Pod:
        """The agent's pod, after its init containers."""
        pod = self.pod("daemonset.yaml")
        for name, env in (("folders", {}), ("fetch", {"BUNDLE_SOURCE": source})):
            done = pod.run(name, **env)
            assert done.returncode == 0, done.stderr
        return pod


@pytest.fixture
def cluster(image: Machine, registry: Registry, tmp_path: Path) -> Cluster:
    return Cluster(image, registry, tmp_path)


def probe(pod: Pod, name: str) -> bool:
    """What the kubelet would find."""
    (container,) = pod.spec["containers"]
    return pod.run(container["name"], container[name]["exec"]["command"]).returncode == 0


class Warm:
    """The running container of the agent."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.process = subprocess.Popen(
            pod.command("warm"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def until(self, true: Callable[[], bool]) -> None:
        ends = time.monotonic() + 120
        while not true():
            assert self.process.poll() is None and time.monotonic() < ends, self.end()
            time.sleep(0.1)

    def end(self) -> str:
        self.signal(signal.SIGTERM)
        return self.process.communicate(timeout=60)[0]

    def signal(self, number: signal.Signals) -> None:
        """To the first process of the container, as the kubelet does. That unshare dies with it, but not it with
        unshare: it has changed its user."""
        if self.process.poll() is not None:
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), number)


@pytest.fixture
def warm() -> Iterator[Callable[[Pod], Warm]]:
    running: list[Warm] = []

    def start(pod: Pod) -> Warm:
        running.append(Warm(pod))
        return running[-1]

    yield start
    for one in running:
        one.signal(signal.SIGKILL)
        one.process.communicate()


def app_line(pod: Pod, script: str = 'refit-agent path --public-key /etc/refit-agent/bundle-keys.pub "$BUNDLE" ' + MODEL) -> Any:  # fmt: skip
    return pod.run("photo", ["sh", "-c", script])


def test_from_an_empty_node_to_an_app_that_has_its_engine(
    cluster: Cluster, warm: Callable[[Pod], Warm], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    pod = cluster.started(cluster.publish(bundle, "1.0"))
    app = cluster.pod("app-example.yaml")
    early = app_line(app)
    assert early.returncode == 7, "without an engine, an app that may not write must fail and not wait: " + early.stderr
    assert not probe(pod, "readinessProbe") and not probe(pod, "livenessProbe")

    container = warm(pod)
    container.until(lambda: probe(pod, "readinessProbe"))
    assert probe(pod, "livenessProbe")
    found = app_line(app)
    assert found.returncode == 0, found.stderr
    engine = found.stdout.strip()
    assert engine.startswith("/var/cache/refit-agent/engines/")
    assert app_line(app, f"test -s {engine}").returncode == 0
    for place in (engine, "/var/lib/refit-agent/bundles/x", "/etc/x", "/x"):
        written = app_line(app, f"exec >>{place}")
        assert written.returncode != 0 and "Read-only file system" in written.stderr, place
    log = container.end()
    assert container.process.returncode == 143
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert lines[-1]["event"] == "result" and lines[-1]["ok"] is True
    # Rights: everything on the node belongs to the one user, and nobody else may look.
    for folder in ("cache", "bundles"):
        status = (cluster.node / "var/lib/refit-agent-fleet" / folder).stat()
        assert (status.st_uid, status.st_mode & 0o777) == (10731, 0o700)

    # A node that starts again finds everything; a source that is down does not matter.
    pod = cluster.started("oci://127.0.0.1:1/photo/bundle:1.0")
    again = warm(pod)
    again.until(lambda: probe(pod, "readinessProbe"))
    result = json.loads([line for line in again.end().splitlines() if '"result"' in line][-1])
    assert [e["hit"] for e in result["engines"]] == [True]


def test_a_tampered_update_leaves_the_node_as_it_was(
    cluster: Cluster, warm: Callable[[Pod], Warm], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    cluster.started(cluster.publish(bundle, "1.0"))
    cluster.publish(bundle, "2.0")
    edit(bundle, lambda d: d["app"].update(version="6.6.6"))
    pod = cluster.started(cluster.registry.push(bundle, "photo/bundle:2.0"))
    current = cluster.node / "var/lib/refit-agent-fleet/bundles/photo/current/bundle.json"
    assert json.loads(current.read_text())["app"]["version"] == "1.0"
    container = warm(pod)
    container.until(lambda: probe(pod, "readinessProbe"))


def test_it_is_not_ready_while_an_engine_cannot_be_made(
    cluster: Cluster, warm: Callable[[Pod], Warm], tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    pod = cluster.started(cluster.publish(bundle, "1.0"))
    current = (cluster.node / "var/lib/refit-agent-fleet/bundles/photo/current").resolve()
    (current / "models/mlp.onnx").write_bytes(b"rot")
    container = warm(pod)
    container.until(lambda: probe(pod, "livenessProbe"))
    seen: list[bool] = []
    container.until(lambda: not seen.append(probe(pod, "readinessProbe")) and len(seen) > 20)
    assert not any(seen)
    log = container.end()
    assert '"event":"result"' in log.replace(" ", ""), log


def test_without_keys_nothing_is_taken(cluster: Cluster, tmp_path: Path) -> None:
    """The example's own ConfigMap, unchanged."""
    source = cluster.publish(make_bundle(tmp_path / "bundle"), "1.0")
    (settings,) = manifests("settings.yaml")
    cluster.data["refit-agent-settings"] = settings["data"]
    pod = cluster.pod("daemonset.yaml")
    assert pod.run("folders").returncode == 0
    assert pod.run("fetch", BUNDLE_SOURCE=source).returncode == 2
    assert not (cluster.node / "var/lib/refit-agent-fleet/bundles/photo/current").exists()
