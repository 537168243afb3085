"""The documentation is complete and its links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from archimedes.cli import assemble
from models.policy import Policy
from models.struct_words import allowed

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Every command that can be run, by its full name; typer does not publish the types."""
    children = getattr(command, "commands", {})
    for child_name, child in children.items():
        yield from commands(child, f"{name} {child_name}")
    if not children or command.invoke_without_command:
        yield name, command


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    sections = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    missing = []
    for name, command in commands(typer.main.get_command(assemble()), "archimedes"):
        section = sections.get(name)
        if section is None:
            missing.append(name)
            continue
        for parameter in command.params:
            names = parameter.opts + parameter.secondary_opts
            missing += [f"{name} {n}" for n in names if f"`{n}`" not in section]
    assert not missing, f"docs/cli.md lacks: {', '.join(missing)}"


def test_every_command_has_help_with_an_example() -> None:
    lacking = [
        name
        for name, command in commands(typer.main.get_command(assemble()), "archimedes")
        if "archimedes" not in (command.help or "") + (command.epilog or "")
    ]
    assert not lacking, f"no example in the help of: {', '.join(lacking)}"


def test_every_policy_field_is_documented_with_its_default_and_bounds() -> None:
    text = (ROOT / "docs" / "policy.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| ([0-9.]+) \| ([^|]+) \| ", text, re.MULTILINE)
    assert [(field, float(default), bounds) for field, default, bounds in rows] == [
        (field, getattr(Policy(), field), allowed(Policy, field))
        for field in Policy.__struct_fields__
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert not [t for t in targets if not (page.parent / t).exists()]


def test_every_page_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [p.name for p in (ROOT / "docs").glob("*.md") if f"docs/{p.name}" not in readme]


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert "make demo" in readme
    assert "make test" in readme
