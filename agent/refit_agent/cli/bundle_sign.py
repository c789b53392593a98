"""`refit-agent bundle keygen|sign|verify`: whose bundle it is."""

from __future__ import annotations

import os

import click

from refit_agent.cli import output
from refit_agent.cli.group import json_option
from refit_agent.cli.verify_command import find_faults, verify

__all__ = ["keygen", "sign", "verify"]
#: A password on the command line would stand in every process list.
PASSWORD_VARIABLE = "REFIT_AGENT_KEY_PASSWORD"  # noqa: S105 # nosec B105 # the name of a variable
_KEY_HELP = f"The private key's file; {PASSWORD_VARIABLE} holds its password, if it has one."


def _password() -> bytes | None:
    return os.environ.get(PASSWORD_VARIABLE, "").encode() or None


@click.command(short_help="Make a key pair to sign bundles with.")
@click.argument("file", type=click.Path())
@json_option
def keygen(file: str, as_json: bool) -> int:
    """Write a new private Ed25519 key to FILE, readable for you alone, and print its public key: that is what
    the app gives as public_keys. Keep FILE where your releases are signed, and never ship it.

    \b
    Example:
      refit-agent bundle keygen release-key.pem > release-key.pub
    """
    from refit_agent.authoring.signing import make_key

    public = make_key(file, _password())
    if as_json:
        output.emit_json({"private_key": os.path.abspath(file), "public_key": public})
    else:
        output.emit(public)
    return 0


@click.command(short_help="Sign a bundle.")
@click.argument("bundle", type=click.Path())
@click.option("--key", required=True, type=click.Path(), metavar="FILE", help=_KEY_HELP)
@click.option("--no-verify", is_flag=True, help="Do not compare the files with the manifest first.")
@json_option
def sign(bundle: str, key: str, no_verify: bool, as_json: bool) -> int:
    """Sign BUNDLE, as bundle.sig beside its manifest, after every file was compared with the manifest. A good
    signature by another key stays, so that an app can change its key. Every change of the manifest ends all.

    \b
    Example:
      refit-agent bundle sign ./bundle --key release-key.pem
    """
    from refit_agent.authoring.signing import public_key_of, read_to_sign, sign_bundle

    public_key_of(key, _password())  # before gigabytes are read in vain
    opened, manifest = read_to_sign(bundle)
    if not no_verify:
        faults = find_faults(opened)
        if faults:
            raise faults[0]
    public, count = sign_bundle(bundle, key, _password(), manifest=manifest)
    if as_json:
        output.emit_json({"bundle": os.path.abspath(bundle), "public_key": public, "signatures": count})
    else:
        output.emit(f"signed by {public}" + (f"; {count} signatures in all" if count > 1 else ""))
    return 0
