"""`refit-agent bundle …`: what an app's developer runs; each command's module is imported when it is invoked."""

from __future__ import annotations

import click

from refit_agent.cli.group import LazyGroup
from refit_agent.errors import BundleError

#: Name -> where the command is, in the order of the help.
_COMMANDS = {
    "init": "refit_agent.cli.bundle_make:init",
    "add-model": "refit_agent.cli.bundle_make:add_model",
    "add-engine": "refit_agent.cli.bundle_make:add_engine",
    "golden": "refit_agent.cli.bundle_golden:golden",
    "canonicalize": "refit_agent.cli.bundle_onnx:canonicalize",
    "strip-onnx": "refit_agent.cli.bundle_strip:strip_onnx",
    "restore-onnx": "refit_agent.cli.bundle_strip:restore_onnx",
    "build": "refit_agent.cli.bundle_build:build",
    "import": "refit_agent.cli.bundle_import:import_command",
    "keygen": "refit_agent.cli.bundle_sign:keygen",
    "sign": "refit_agent.cli.bundle_sign:sign",
    "verify": "refit_agent.cli.bundle_sign:verify",
    "inspect": "refit_agent.cli.bundle_show:inspect",
    "size": "refit_agent.cli.bundle_show:size",
    "schema": "refit_agent.cli.bundle_schema:schema",
}


class _ForVendors(LazyGroup):
    """Errors of a bundle tell its user to ask the app's vendor, who is the one that reads them here."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BundleError as error:
            if error.hint == BundleError.advice:
                error.hint = ""
            raise


@click.group(cls=_ForVendors, places=_COMMANDS, short_help="Make, check and sign a bundle.")
def bundle() -> None:
    """Make a bundle, check it, and sign it: for an app's developer, on the machine where the app is built.

    \b
    Example:
      refit-agent bundle init ./bundle --id com.example.photo --name Photo --version 2.3.0
      refit-agent bundle add-model ./bundle denoiser denoiser.onnx
    """
