"""The command `archimedes`: one subcommand a package, errors as one sentence."""

from __future__ import annotations

import sys
from functools import cache

import typer

from models.errors import ArchimedesError, printable


@cache
def assemble() -> typer.Typer:
    """The whole command, put together from the packages' own.

    Once: `tune` needs the trainer and the shadow, so it is added to the trainer's command here.
    """
    from archimedes.demo.cli import demo
    from archimedes.tune.cli import tune
    from extender.cli import app as extender_app
    from extender.explain_cli import nodes, why
    from models.cli import app as models_app
    from shadow.cli import app as shadow_app
    from trainer.cli import app as trainer_app

    trainer_app.command(
        "tune", epilog="Example: archimedes trainer tune --trace traces/azure --jobs 2 --register"
    )(tune)
    app = typer.Typer(
        name="archimedes",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Gives data centres back the CPU that their services ask for and never use.",
    )
    app.command("demo")(demo)
    app.add_typer(extender_app, name="extender")
    app.add_typer(trainer_app, name="trainer")
    app.add_typer(shadow_app, name="shadow")
    app.add_typer(models_app, name="models")
    app.command("why")(why)
    app.command("nodes")(nodes)
    return app


def main() -> None:
    """Run the command; exit code 0, 1 (a bug, or interrupted) or 2 (the user can mend it)."""
    try:
        assemble()()
    except ArchimedesError as error:
        typer.echo(f"archimedes: {printable(str(error))}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
