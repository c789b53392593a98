"""`refit-agent register`, `unregister` and `registered`: for which apps the service keeps engines ready."""

from __future__ import annotations

import os

import click
import msgspec

from refit_agent.cli import output
from refit_agent.cli.group import json_option
from refit_agent.cli.public_keys import pinned_keys, public_key_option
from refit_agent.client.messages import BundleRecord
from refit_agent.client.sync import ServiceClient
from refit_agent.errors import NoSuchBundle


@click.command(short_help="Have the service keep a bundle's engines ready.")
@click.argument("bundle", type=click.Path())
@public_key_option
@json_option
def register(bundle: str, public_key: tuple[str, ...], as_json: bool) -> int:
    """Register BUNDLE with the service, for instance when its app has been installed: its engines are made in the
    background, now and after a new driver or GPU, until it is unregistered. Once more does no harm.

    \b
    Example:
      refit-agent register /opt/app/bundle
    """
    keys = pinned_keys(public_key)
    with ServiceClient() as client:
        record = client.add_bundle(bundle, keys)
    if as_json:
        output.emit_json(msgspec.to_builtins(record))
    else:
        output.emit(f"{record.id}  {_bundle_text(record)}")
    return 0


@click.command(short_help="List the bundles that the service keeps ready.")
@json_option
def registered(as_json: bool) -> int:
    """List the bundles that the service keeps ready.

    \b
    Example:
      refit-agent registered --json
    """
    with ServiceClient() as client:
        records = client.bundles()
    if as_json:
        output.emit_json({"bundles": msgspec.to_builtins(records)})
        return 0
    for record in records:
        output.emit(f"{record.id}  {_bundle_text(record)}")
    if not records:
        output.emit("no bundle is registered")
    return 0


@click.command(short_help="Have the service forget a bundle.")
@click.argument("bundle")
@json_option
def unregister(bundle: str, as_json: bool) -> int:
    """Have the service forget BUNDLE, named by its id or its folder, for instance when its app is removed. Its
    engines stay in the cache until they age out.

    \b
    Example:
      refit-agent unregister /opt/app/bundle
    """
    with ServiceClient() as client:
        known = {record.id for record in client.bundles()}
        name = bundle if bundle in known else _id_of(client, bundle)
        try:
            client.remove_bundle(name)
        except NoSuchBundle as error:
            # The advice of the class is for those who want the bundle; here nothing is left to do, or another is meant.
            hint = "'refit-agent registered' lists the ids and folders of those that are."
            raise NoSuchBundle(id=bundle, hint=hint) from error
    if as_json:
        output.emit_json({"removed": name})
    else:
        output.emit(f"removed {name}")
    return 0


def _id_of(client: ServiceClient, bundle: str) -> str:
    """The id of the bundle in a folder, which may be gone already; what is none is for the service to refuse."""
    folder = os.path.realpath(bundle)
    return next((r.id for r in client.bundles() if os.path.realpath(r.path) == folder), bundle)


def _bundle_text(record: BundleRecord) -> str:
    return f"{record.name} {record.version} ({record.app}), {output.count_text(len(record.models), 'model')}, {record.path}"
