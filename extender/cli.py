"""`archimedes extender`: serve, or look at the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(pretty_exceptions_enable=False)

_CONFIG = typer.Option("--config", metavar="FILE", help="YAML file; the defaults without it.")
_VALIDATE = typer.Option("--validate", help="Check the settings, then stop: 0 if good, 2 if not.")
_PRINT = typer.Option("--print-defaults", help="Print every setting with its default and why.")


@app.callback(
    invoke_without_command=True,
    subcommand_metavar="",
    epilog="Example: archimedes extender --config /etc/archimedes/extender.yaml",
)
def extender(
    config: Annotated[Path | None, _CONFIG] = None,
    validate: Annotated[bool, _VALIDATE] = False,
    print_defaults: Annotated[bool, _PRINT] = False,
) -> None:
    """Serve kube-scheduler's filter, prioritize and bind calls until SIGTERM."""
    from extender.settings import describe, load_settings

    if print_defaults:
        typer.echo(describe(), nl=False)
        return
    settings = load_settings(config)
    if validate:
        typer.echo(f"{config or 'the defaults'}: the settings are good")
        return
    from extender.app import serve

    serve(settings)
