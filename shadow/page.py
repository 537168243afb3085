"""A report as one self-contained HTML file: nothing is fetched when it is opened."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from models.errors import SettingsError

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """A headline, and below it a text, a figure and a table; what is empty is left out.

    ``head`` names the table's columns; without it a table has names on the left, values on the
    right.
    """

    title: str
    figure: Figure | None = None
    text: Sequence[str] = ()
    rows: Rows = ()
    head: Sequence[str] = ()


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page.

    Raises:
        SettingsError: the file cannot be written.
    """
    body = "\n".join(_section(section) for section in sections)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_PAGE.format(title=html.escape(title), body=body), encoding="utf-8")
    except OSError as e:
        raise SettingsError(f"the page {path} cannot be written: {e.strerror}") from e


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(line)}</p>" for line in section.text]
    if section.figure is not None:
        parts.append(_svg(section.figure))
    if section.rows:
        parts.append(_table(section.rows, section.head))
    return "\n".join(parts)


def _table(rows: Rows, head: Sequence[str]) -> str:
    lines = ["<table>"]
    if head:
        lines.append(f"<tr class='head'>{''.join(f'<th>{html.escape(c)}</th>' for c in head)}</tr>")
    for name, *values in rows:
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return "\n".join([*lines, "</table>"])


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #0f172a; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .25rem 1.5rem .25rem 0; border-bottom: 1px solid #e2e8f0;
  font-weight: normal; vertical-align: top; }}
th {{ white-space: pre-wrap; }}
p {{ margin: .2rem 0; }}
td {{ font-variant-numeric: tabular-nums; font-weight: 600; }}
.head th {{ color: #64748b; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
