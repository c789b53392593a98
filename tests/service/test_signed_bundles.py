"""Bundles whose key was pinned at registration, or in the request."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundles import MODEL, edit
from refit_agent import ServiceClient, ensure_engine
from refit_agent.authoring.signing import make_key, sign_bundle
from refit_agent.errors import SignatureInvalid, SignatureMissing

from .running import Running, until


@pytest.fixture
def public(tmp_path: Path) -> str:
    return make_key(str(tmp_path / "key.pem"))


@pytest.fixture
def signed(bundle: Path, public: str, tmp_path: Path) -> Path:
    sign_bundle(str(bundle), str(tmp_path / "key.pem"))
    return bundle


def test_a_key_pinned_at_registration_counts_at_every_use(service: Running, signed: Path, public: str) -> None:
    """By folder and by id, after a restart too, and for a bundle that was changed since."""
    with ServiceClient(str(service.socket)) as client:
        record = client.add_bundle(signed, [public])
        assert record.public_keys == (public,)
        service.kill()
        service.start()
        assert service.ensure(record.id, MODEL).lines[-1]["event"] == "result"
        edit(signed, lambda d: d["app"].update(version="9"))
        for name in (record.id, str(signed)):
            assert service.ensure(name, MODEL).document["code"] == "signature-invalid"
        with pytest.raises(SignatureInvalid):
            client.add_bundle(signed, [public])


def test_an_unsigned_bundle_is_not_registered_with_a_key(service: Running, bundle: Path, public: str) -> None:
    """Nothing of it is kept."""
    with ServiceClient(str(service.socket)) as client:
        with pytest.raises(SignatureMissing):
            client.add_bundle(bundle, [public])
        assert client.bundles() == ()


def test_a_key_in_the_request_counts_too(service: Running, bundle: Path, signed: Path, public: str) -> None:
    """And an app that pins one gets its engine from the service as well."""
    del bundle
    answer = service.ensure(signed, MODEL, public_keys=[public])
    assert answer.lines[-1]["event"] == "result"
    (signed / "bundle.sig").unlink()
    assert service.ensure(signed, MODEL, public_keys=[public]).document["code"] == "signature-missing"


def test_ensure_engine_passes_its_keys_on(service: Running, signed: Path, public: str, home: Path) -> None:
    """The service makes the engine, under the key that the app gave."""
    with ensure_engine(signed, MODEL, service=True, public_keys=[public]) as engine:
        assert not engine.hit
    assert "another" not in (home / "state/logs/service.log").read_text()


def test_background_work_checks_the_signature(
    home: Path, signed: Path, public: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that is not the registered app's is not made, and the status says why."""
    with Running(home, REFIT_AGENT_WARM="1") as service, ServiceClient(str(service.socket)) as client:
        client.add_bundle(signed, [public])
        until(lambda: service.status["cache"]["entries"] == 1)
        edit(signed, lambda d: d["app"].update(version="9"))
        other = client.add_bundle  # asks for another look
        with pytest.raises(SignatureInvalid):
            other(signed, [public])
        service.kill()
        service.start()
        failures = until(lambda: service.status["warm"]["failures"])
        assert failures[0]["code"] == "signature-invalid"


def test_no_name_of_the_folder_gets_round_the_key(service: Running, signed: Path, public: str, tmp_path: Path) -> None:
    """A link to it, a way round, and the manifest's own path."""
    with ServiceClient(str(service.socket)) as client:
        client.add_bundle(signed, [public])
    (signed / "bundle.sig").unlink()
    (tmp_path / "link").symlink_to(signed)
    for name in (signed, signed / "bundle.json", tmp_path / "link", signed / ".." / signed.name):
        assert service.ensure(name, MODEL).document["code"] == "signature-missing", name
        explained = service.ask("GET", f"/v1/explain?bundle={name}")
        assert explained.document["code"] == "signature-missing", name


def test_a_key_stays_pinned(service: Running, signed: Path, public: str, tmp_path: Path) -> None:
    """Whoever registers again without one, or asks with another one, does not take it away."""
    other = make_key(str(tmp_path / "other.pem"))
    with ServiceClient(str(service.socket)) as client:
        client.add_bundle(signed, [public])
        assert client.add_bundle(signed).public_keys == (public,)
    sign_bundle(str(signed), str(tmp_path / "other.pem"))
    assert service.ensure(signed, MODEL, public_keys=[other]).document["code"] == "signature-missing"
    assert service.ensure(signed, MODEL, public_keys=[other, public]).lines[-1]["event"] == "result"
