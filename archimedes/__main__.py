"""`python -m archimedes` is the command `archimedes`."""

from archimedes.cli import main

main()
