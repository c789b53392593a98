"""What a fleet fetches bundles from, on loopback: a real OCI registry, a server of the S3 protocol, and bad lines."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

FLEET = Path(__file__).parents[1] / "packaging" / "fleet"
FETCH = FLEET / "ansible" / "roles" / "refit_agent" / "files" / "refit-agent-fetch-bundle"
_BIN = Path(sys.executable).parent


def tool(name: str, package: str) -> str:
    """The path of a command, beside this Python or on PATH; skips the test where it is missing."""
    found = shutil.which(name, path=f"{_BIN}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed ({package})")
    return found


def free_port() -> int:
    """A port of loopback that nobody had a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def refit_agent_command(folder: Path) -> Path:
    """A folder for PATH with the command refit-agent, run by this Python."""
    folder.mkdir(parents=True, exist_ok=True)
    command = folder / "refit-agent"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m refit_agent "$@"\n')
    command.chmod(0o755)
    return folder


@contextlib.contextmanager
def serving(command: list[str], port: int, path: str, log: Path, **env: str) -> Iterator[None]:
    """Run a server until it answers at ``path`` of its port, and end it afterwards."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env})
    try:
        for _ in range(600):
            try:
                line = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                line.request("GET", path)
                line.getresponse().read()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
            finally:
                line.close()
        else:
            raise AssertionError(f"{command[0]} does not answer: {log.read_text()}")
        yield
    finally:
        process.kill()
        process.wait()


class Registry:
    """A running OCI registry; ``home`` is a home whose containers/registries.conf allows to speak to it without TLS."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.home = folder / "home"
        self.allow(port)

    def allow(self, *ports: int) -> None:
        """No TLS for these ports, and for no others."""
        entries = [f'[[registry]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n' for port in ports]
        conf = self.home / ".config" / "containers" / "registries.conf"
        conf.parent.mkdir(parents=True, exist_ok=True)
        conf.write_text("\n".join(entries))

    def push(self, bundle: Path, name: str, target: str = "/bundle") -> str:
        """Publish a folder as an image of one layer, as the README of the fleet shows it; gives its source."""
        layout = self.folder / f"layout-{name.replace('/', '-').replace(':', '-')}"
        shutil.rmtree(layout, ignore_errors=True)
        image = f"{layout}:bundle"
        for command in (
            ["umoci", "init", "--layout", str(layout)],
            ["umoci", "new", "--image", image],
            ["umoci", "insert", "--image", image, "--rootless", str(bundle), target],
        ):
            subprocess.run(command, check=True, capture_output=True)
        self.push_layout(layout, name)
        return f"oci://127.0.0.1:{self.port}/{name}"

    def push_layout(self, layout: Path, name: str) -> None:
        """Publish the image "bundle" of an OCI layout."""
        command = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:bundle"]
        subprocess.run([*command, f"docker://127.0.0.1:{self.port}/{name}"], check=True, capture_output=True)


@contextlib.contextmanager
def oci_registry(folder: Path) -> Iterator[Registry]:
    """A real registry with nothing in it; skips where one of the tools is missing."""
    for name in ("skopeo", "umoci"):
        tool(name, f"Debian package {name}")
    server = tool("docker-registry", "Debian package docker-registry")
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with serving([server, "serve", str(config)], port, "/v2/", folder / "registry.log"):
        yield Registry(folder, port)


class Bucket:
    """A bucket "models" of a running S3 server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.env = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "RCLONE_S3_ENDPOINT": f"http://127.0.0.1:{port}",
            "RCLONE_S3_PROVIDER": "Other",
            "RCLONE_S3_REGION": "us-east-1",
        }

    def push(self, bundle: Path, prefix: str) -> str:
        """Publish a folder below a prefix, as the README of the fleet shows it; gives its source."""
        env = {**os.environ, **self.env, "RCLONE_S3_ENV_AUTH": "true", "RCLONE_CONFIG": "/dev/null"}
        command = ["rclone", "sync", "--quiet", str(bundle), f":s3:models/{prefix}"]
        env.pop("AWS_CA_BUNDLE", None)
        subprocess.run(command, check=True, capture_output=True, env=env)
        return f"s3://models/{prefix}"


@contextlib.contextmanager
def s3_bucket(folder: Path) -> Iterator[Bucket]:
    """A server of the S3 protocol; skips where one of the tools is missing."""
    tool("rclone", "Debian package rclone")
    server = tool("moto_server", "moto, flask and flask-cors from PyPI")
    port = free_port()
    # A bucket that is not there is made by its first PUT.
    with serving([server, "-H", "127.0.0.1", "-p", str(port)], port, "/", folder / "s3.log"):
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        line.request("PUT", "/models", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"})  # fmt: skip
        assert line.getresponse().status == 200
        line.close()
        yield Bucket(port)


class BadLine:
    """A TCP relay to a port of loopback that stands still after a number of bytes, for as long as that is set."""

    def __init__(self, target: int) -> None:
        self.stall_after: int | None = None
        self.passed = 0
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def stalled(self) -> bool:
        return self.stall_after is not None and self.passed >= self.stall_after

    def close(self) -> None:
        self.stall_after = None
        for one in [self._server, *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                threading.Thread(target=self._relay, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._relay, args=(far, near, True), daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if counted:
                    self.passed += len(data)
                while counted and self.stalled:
                    time.sleep(0.02)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
