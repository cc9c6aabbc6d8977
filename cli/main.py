"""The `efface` command: nouns as groups, and the verbs that stand alone."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from . import (
    adapter,
    attest,
    audit,
    audit_reversible,
    audit_sign,
    bundle,
    checkpoint,
    collect,
    demo,
    doctor,
    key,
    ledger,
    merge,
    model,
    recipe,
    release,
    request,
    serve,
    serve_gateway,
    unlearn,
    vault,
)
from .failure import exit_codes

app = typer.Typer(
    name="efface",
    help="Adapter-based unlearning: train a forgetting, prove it, stack it, roll it back.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(model.app, name="model")
app.add_typer(request.app, name="request")
app.add_typer(adapter.app, name="adapter")
app.add_typer(release.app, name="release")
app.add_typer(audit.app, name="audit")
app.add_typer(key.app, name="key")
app.add_typer(checkpoint.app, name="checkpoint")
app.add_typer(attest.app, name="attest")
app.add_typer(bundle.app, name="bundle")
app.add_typer(recipe.app, name="recipe")
app.add_typer(vault.app, name="vault")
audit.app.command("reversible", epilog=audit_reversible.EXAMPLE)(audit_reversible.reversible)
audit.app.command("sign", epilog=audit_sign.SIGN_EXAMPLE)(audit_sign.sign)
audit.app.command("verify", epilog=audit_sign.VERIFY_EXAMPLE)(audit_sign.verify)
app.add_typer(serve.app, name="serve")
serve.app.command("gateway", epilog=serve_gateway.EXAMPLE)(serve_gateway.gateway)
serve.app.command("key", epilog=serve_gateway.KEY_EXAMPLE)(serve_gateway.key)
serve.app.command("revoke", epilog=serve_gateway.REVOKE_EXAMPLE)(serve_gateway.revoke)
app.command("unlearn", epilog=unlearn.EXAMPLE)(unlearn.unlearn)
app.command("merge", epilog=merge.EXAMPLE)(merge.merge)
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)
app.command("log", epilog=ledger.LOG_EXAMPLE)(ledger.log)
app.command("verify", epilog=ledger.VERIFY_EXAMPLE)(ledger.verify)
app.command("gc", epilog=collect.EXAMPLE)(collect.gc)
app.command("doctor", epilog=doctor.EXAMPLE)(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"efface {version('efface')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Adapter-based unlearning: train a forgetting, prove it, stack it, roll it back."""


def run() -> None:
    """Entry point of the `efface` script."""
    _quiet_libraries()
    try:
        with exit_codes():
            app()
    except typer.Exit as stop:
        sys.exit(stop.exit_code)


def _quiet_libraries() -> None:
    """Keep talk of the libraries off the terminal; their errors still come as exceptions."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
