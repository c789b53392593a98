"""refit-agent-fetch-bundle against a real registry and a server of the S3 protocol."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from bundles import edit, make_bundle
from fleet_peers import FETCH, BadLine, Bucket, Registry, free_port, oci_registry, refit_agent_command, s3_bucket
from refit_agent.authoring.signing import make_key, sign_bundle

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the script is for Linux")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as one:
        yield one


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with s3_bucket(tmp_path_factory.mktemp("s3")) as one:
        yield one


class Node:
    """A machine that fetches: its key file, its folder of one bundle, its tools."""

    def __init__(self, tmp_path: Path, registry: Registry | None, bucket: Bucket | None) -> None:
        self.folder = tmp_path / "bundles" / "photo"
        self.current = self.folder / "current"
        self.private = tmp_path / "key.pem"
        self.key = tmp_path / "key.pub"
        self.key.write_text(make_key(str(self.private)) + "\n")
        # Set here or not, it must come to the same (rclone does not bear it).
        ca = {"AWS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt"}
        self.env = {
            **os.environ,
            **ca,
            "PATH": f"{refit_agent_command(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}",
        }
        if registry is not None:
            self.env["HOME"] = str(registry.home)
        if bucket is not None:
            self.env |= bucket.env

    def command(self, source: str, *options: str) -> list[str]:
        return [str(FETCH), "--public-key", str(self.key), *options, source, str(self.folder)]

    def fetch(self, source: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(source, *options), env=self.env, capture_output=True, text=True)

    def sound(self) -> bool:
        """Whether the bundle in place is whole and signed."""
        command = ["refit-agent", "verify", str(self.current), "--public-key", str(self.key)]
        return subprocess.run(command, env=self.env, capture_output=True).returncode == 0

    def versions(self) -> list[Path]:
        return [p for p in (self.folder / "versions").iterdir() if p.is_dir()]


def signed(node: Node, bundle: Path, version: str = "1.0") -> Path:
    edit(bundle, lambda d: d["app"].update(version=version))
    sign_bundle(str(bundle), str(node.private))
    return bundle


def sources(request: pytest.FixtureRequest) -> tuple[Registry | None, Bucket | None]:
    if request.param == "oci":
        return request.getfixturevalue("registry"), None
    return None, request.getfixturevalue("bucket")


@pytest.fixture(params=["oci", "s3"])
def peers(request: pytest.FixtureRequest) -> tuple[Registry | None, Bucket | None]:
    return sources(request)


@pytest.fixture
def node(peers: tuple[Registry | None, Bucket | None], tmp_path: Path) -> Node:
    return Node(tmp_path, *peers)


@pytest.fixture
def publish(peers: tuple[Registry | None, Bucket | None], tmp_path: Path) -> Callable[[Path], str]:
    """Publishes a folder under this test's own name, over what was there; gives the source."""
    registry, bucket = peers
    name = tmp_path.name.lower().replace("_", "-").strip("-")
    if registry is not None:
        return lambda folder: registry.push(folder, f"{name}/bundle:stable")
    assert bucket is not None
    return lambda folder: bucket.push(folder, name)


def test_a_bundle_comes_whole_and_a_second_time_nothing_changes(
    node: Node, publish: Callable[[Path], str], bundle: Path
) -> None:
    source = publish(signed(node, bundle))
    first = node.fetch(source)
    assert (first.returncode, first.stdout) == (0, f"new {node.current}\n"), first.stderr
    assert node.sound()
    assert not os.path.isabs(os.readlink(node.current)), "it must also lead there where the folder is mounted elsewhere"
    place, inode = os.readlink(node.current), (node.current / "bundle.json").stat().st_ino
    again = node.fetch(source)
    assert (again.returncode, again.stdout) == (0, f"unchanged {node.current}\n"), again.stderr
    assert (os.readlink(node.current), (node.current / "bundle.json").stat().st_ino) == (place, inode)
    assert sorted(p.name for p in node.folder.iterdir()) == ["current", "lock", "versions"]


def test_an_update_replaces_it_in_one_step_and_keeps_the_one_before(
    node: Node, publish: Callable[[Path], str], bundle: Path
) -> None:
    places = []
    for version in ("1.0", "2.0", "3.0"):
        answer = node.fetch(publish(signed(node, bundle, version)))
        assert answer.stdout.startswith("new "), answer.stderr
        places.append(node.current.resolve())
    assert sorted(node.versions()) == sorted(places[1:])
    assert node.sound()
    # Back to the one before, which is still there: nothing but the link changes.
    kept = (places[1] / "bundle.json").stat().st_ino
    answer = node.fetch(publish(signed(node, bundle, "2.0")))
    assert answer.stdout.startswith("new "), answer.stderr
    assert node.current.resolve() == places[1]
    assert (places[1] / "bundle.json").stat().st_ino == kept


@pytest.mark.parametrize("damage", ["weights", "manifest", "signature", "stranger"])
def test_a_tampered_bundle_is_refused_and_the_old_one_stays(
    node: Node, publish: Callable[[Path], str], bundle: Path, tmp_path: Path, damage: str
) -> None:
    node.fetch(publish(signed(node, bundle)))
    place = os.readlink(node.current)
    signed(node, bundle, "2.0")
    onnx = (bundle / "models" / "mlp.onnx").read_bytes()
    if damage == "weights":
        with (bundle / "models" / "mlp.onnx").open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(b"tampered")
    elif damage == "manifest":
        edit(bundle, lambda d: d["app"].update(version="6.6.6"))
    elif damage == "signature":
        (bundle / "bundle.sig").unlink()
    else:
        (bundle / "bundle.sig").unlink()
        make_key(str(tmp_path / "other.pem"))
        sign_bundle(str(bundle), str(tmp_path / "other.pem"))
    source = publish(bundle)
    answer = node.fetch(source)
    assert answer.returncode == 3, answer.stderr
    assert answer.stdout == ""
    assert (os.readlink(node.current), node.sound()) == (place, True)
    assert [p.name for p in node.versions()] == [Path(place).name]
    kept = node.fetch(source, "--or-keep")
    assert (kept.returncode, kept.stdout) == (0, f"kept {node.current}\n")
    # What was refused is fetched anew once it has been put right.
    (bundle / "models" / "mlp.onnx").write_bytes(onnx)
    assert node.fetch(publish(signed(node, bundle, "2.0"))).stdout == f"new {node.current}\n"


def test_without_a_bundle_from_before_nothing_is_kept(node: Node, publish: Callable[[Path], str], bundle: Path) -> None:
    signed(node, bundle)
    (bundle / "bundle.sig").unlink()
    answer = node.fetch(publish(bundle), "--or-keep")
    assert (answer.returncode, answer.stdout) == (3, "")
    assert not node.current.exists()


def test_a_source_that_is_down_leaves_the_old_bundle(node: Node, publish: Callable[[Path], str], bundle: Path) -> None:
    node.fetch(publish(signed(node, bundle)))
    place = os.readlink(node.current)
    port = free_port()
    node.env["RCLONE_S3_ENDPOINT"] = f"http://127.0.0.1:{port}"
    for source in (f"oci://127.0.0.1:{port}/photo/bundle:1", "s3://models/photo"):
        if shutil.which("rclone" if source.startswith("s3") else "skopeo") is None:
            continue
        answer = node.fetch(source)
        assert answer.returncode == 9, answer.stderr
        assert node.fetch(source, "--or-keep").stdout == f"kept {node.current}\n"
    assert (os.readlink(node.current), node.sound()) == (place, True)


def big_bundle(node: Node, root: Path) -> Path:
    """One with a file that the manifest does not name and that no compression makes small: 4 MB to be on the way."""
    make_bundle(root)
    (root / "models" / "zz-notes.bin").write_bytes(os.urandom(4 << 20))
    return signed(node, root, "2.0")


def through(peers: tuple[Registry | None, Bucket | None], node: Node, source: str, line: BadLine) -> str:
    """The same source, over the bad line."""
    registry, _ = peers
    if registry is not None:
        registry.allow(registry.port, line.port)
        return source.replace(f":{registry.port}/", f":{line.port}/")
    node.env["RCLONE_S3_ENDPOINT"] = f"http://127.0.0.1:{line.port}"
    return source


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_fetch_changes_nothing_and_the_next_one_finishes(
    peers: tuple[Registry | None, Bucket | None],
    node: Node,
    publish: Callable[[Path], str],
    bundle: Path,
    tmp_path: Path,
    sent: signal.Signals,
) -> None:
    node.fetch(publish(signed(node, bundle)))
    place = os.readlink(node.current)
    source = publish(big_bundle(node, tmp_path / "big"))
    registry, bucket = peers
    line = BadLine((registry or bucket).port)  # type: ignore[union-attr]
    try:
        line.stall_after = 1 << 20
        over_line = through(peers, node, source, line)
        process = subprocess.Popen(node.command(over_line), env=node.env, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + 60
        while not line.stalled:
            assert time.monotonic() < ends and process.poll() is None
            time.sleep(0.02)
        process.send_signal(sent)
        assert process.wait(30) == (143 if sent == signal.SIGTERM else -signal.SIGKILL)
    finally:
        line.close()
    # With the shell killed, its download ends when the line is cut, and gives the lock back then.
    assert (os.readlink(node.current), node.sound()) == (place, True)
    if bucket is not None:
        node.env["RCLONE_S3_ENDPOINT"] = bucket.env["RCLONE_S3_ENDPOINT"]
    answer = node.fetch(source)
    assert (answer.returncode, answer.stdout) == (0, f"new {node.current}\n"), answer.stderr
    assert node.sound() and (node.current / "models" / "zz-notes.bin").stat().st_size == 4 << 20


def test_a_download_that_stands_still_ends_at_its_limit(
    peers: tuple[Registry | None, Bucket | None],
    node: Node,
    publish: Callable[[Path], str],
    tmp_path: Path,
) -> None:
    source = publish(big_bundle(node, tmp_path / "big"))
    line = BadLine((peers[0] or peers[1]).port)  # type: ignore[union-attr]
    try:
        line.stall_after = 1 << 20
        answer = node.fetch(through(peers, node, source, line), "--limit", "3")
        assert answer.returncode == 9, answer.stderr
        assert line.stalled and not node.current.exists()
    finally:
        line.close()


def test_other_keys_look_at_the_bundle_again(node: Node, publish: Callable[[Path], str], bundle: Path) -> None:
    source = publish(signed(node, bundle))
    node.fetch(source)
    (node.key.parent / "other").mkdir()
    node.key.write_text(make_key(str(node.key.parent / "other" / "key.pem")) + "\n")
    assert node.fetch(source).returncode == 3


def test_a_link_in_the_bundle_is_refused(registry: Registry, tmp_path: Path, bundle: Path) -> None:
    node = Node(tmp_path, registry, None)
    (signed(node, bundle) / "models" / "more").symlink_to("/etc/passwd")
    answer = node.fetch(registry.push(bundle, "links/bundle:1"))
    assert answer.returncode == 3
    assert "models/more is neither a file nor a folder" in answer.stderr


@pytest.mark.parametrize("member", ["../outside", "/outside", "way/outside"])
def test_a_layer_cannot_write_outside(registry: Registry, tmp_path: Path, bundle: Path, member: str) -> None:
    """Image layers come from the network, and are unpacked before any signature can be checked."""
    node = Node(tmp_path, registry, None)
    signed(node, bundle)
    data = BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(bundle, "bundle")
        way = tarfile.TarInfo("way")
        way.type, way.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(way)
        info = tarfile.TarInfo(member)
        info.size = 4
        tar.addfile(info, BytesIO(b"evil"))
    layer = tmp_path / "layer.tar"
    layer.write_bytes(data.getvalue())
    layout = tmp_path / "layout"
    image = f"{layout}:bundle"
    for command in (
        ["umoci", "init", "--layout", str(layout)],
        ["umoci", "new", "--image", image],
        ["umoci", "raw", "add-layer", "--image", image, str(layer)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    registry.push_layout(layout, "evil/bundle:1")
    node.fetch(f"oci://127.0.0.1:{registry.port}/evil/bundle:1")
    found = [p for p in (*tmp_path.rglob("outside"), Path("/outside")) if p.exists()]
    assert all(node.folder in p.parents for p in found), found
    assert not [p for p in found if "versions" in p.parts]


def test_a_digest_needs_no_network_once_it_is_there(registry: Registry, tmp_path: Path, bundle: Path) -> None:
    node = Node(tmp_path, registry, None)
    source = registry.push(signed(node, bundle), "pinned/bundle:1", target="/")
    tagged = ["skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://" + source[6:]]
    digest = subprocess.run(tagged, check=True, capture_output=True, text=True).stdout.strip()
    pinned = f"{source}@{digest}"
    assert node.fetch(pinned).stdout == f"new {node.current}\n"
    node.env["HOME"] = str(tmp_path)  # now it would have to speak TLS, and could not
    assert node.fetch(pinned).stdout == f"unchanged {node.current}\n"
    assert node.fetch(source).returncode == 9


def test_a_full_disk_leaves_the_old_bundle(
    registry: Registry, tmp_path: Path, bundle: Path, mounted: Callable[[str], Path]
) -> None:
    node = Node(tmp_path, registry, None)
    node.folder = mounted("size=3m") / "photo"
    node.current = node.folder / "current"
    assert node.fetch(registry.push(signed(node, bundle), "full/bundle:1")).returncode == 0
    place = os.readlink(node.current)
    answer = node.fetch(registry.push(big_bundle(node, tmp_path / "big"), "full/bundle:2"))
    assert answer.returncode in (3, 7, 9), answer.stderr
    assert (os.readlink(node.current), node.sound()) == (place, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["oci://r.example.com/b:1", "/x"],
        ["--public-key", "/dev/null", "oci://r.example.com/b:1"],
        ["--public-key", "/dev/null", "https://r.example.com/b", "/x"],
        ["--public-key", "/no/such", "oci://r.example.com/b:1", "/x"],
        ["--public-key"],
        ["--insecure", "--public-key", "/dev/null", "oci://r.example.com/b:1", "/x"],
    ],
)
def test_misuse_is_told_from_failure(arguments: list[str]) -> None:
    answer = subprocess.run([str(FETCH), *arguments], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "usage:" in answer.stderr
