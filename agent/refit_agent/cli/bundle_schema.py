"""`refit-agent bundle schema`: the format of the manifest, for editors and other tools."""

from __future__ import annotations

import json

import click

from refit_agent.cli import output


@click.command(short_help="Print the JSON Schema of bundle.json.")
def schema() -> None:
    """Print the JSON Schema (2020-12) of bundle.json: for an editor that completes and checks it, or for a tool in
    another language. `refit-agent bundle verify` checks more than a schema can say.

    \b
    Example:
      refit-agent bundle schema > bundle.schema.json
    """
    from refit_agent.manifest.schema import manifest_schema

    output.emit(json.dumps(manifest_schema(), indent=2))
