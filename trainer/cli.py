"""`archimedes trainer`: everything that turns traces into models."""

from __future__ import annotations

import typer

from trainer.cli_evaluate import evaluate
from trainer.cli_import import app as import_app
from trainer.cli_train import train

app = typer.Typer(no_args_is_help=True, help="Import traces, train, evaluate, tune.")
app.add_typer(import_app, name="import")
app.command("train", epilog="Example: archimedes trainer train --trace traces/azure --register")(
    train
)
app.command("evaluate", epilog="Example: archimedes trainer evaluate --trace traces/azure --json")(
    evaluate
)
