"""`archimedes why` and `archimedes nodes`: ask a running extender, and show what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import msgspec
import typer

from models.errors import ArchimedesError, printable
from models.times import utc

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from extender.decision_log import Preemption
    from extender.explain import Explanation, NodeView

Url = Annotated[str, typer.Option("--url", help="Where the extender listens.")]
CaFile = Annotated[
    str, typer.Option("--ca-file", metavar="FILE", help="Authority of its certificate, for https.")
]
CertFile = Annotated[
    str, typer.Option("--cert-file", metavar="FILE", help="Your client certificate.")
]
KeyFile = Annotated[str, typer.Option("--key-file", metavar="FILE", help="Its private key.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

_DEFAULT_URL = "http://127.0.0.1:8080"
_SHOWN = 10
"""Candidates that are printed; --json holds all."""


class _Term(msgspec.Struct, frozen=True):
    name: str
    text: str
    millicpu: int


class _Horizon(msgspec.Struct, frozen=True):
    hours: int
    terms: tuple[_Term, ...]
    available_millicpu: int


class _Promise(msgspec.Struct, frozen=True):
    pod: str
    millicpu: int
    horizon_hours: int
    stage: str
    made: float


class _Lock(msgspec.Struct, frozen=True):
    name: str
    reason: str
    start: float
    end: float
    millicpu: int


class _Node(msgspec.Struct, frozen=True):
    model_version: str
    arithmetic: tuple[_Horizon, ...]
    promises: tuple[_Promise, ...]
    locks: tuple[_Lock, ...]


def why(
    pod: Annotated[str, typer.Argument(help="NAMESPACE/NAME; without a slash, of `default`.")],
    url: Url = _DEFAULT_URL,
    ca_file: CaFile = "",
    cert_file: CertFile = "",
    key_file: KeyFile = "",
    as_json: Json = False,
) -> None:
    """Explain the newest decision about a pod, and what would have to change where it waits.

    Example: archimedes why batch/report-7 --url http://127.0.0.1:8080
    """
    from extender.client import Extender, read
    from extender.decision_log import Record
    from extender.explain import NodeView, explanation

    key = pod if "/" in pod else f"default/{pod}"
    extender = Extender(url, ca_file, cert_file, key_file)
    said, known = extender.ask(f"/v1/decisions?pod={quote(key)}&limit=1000", "/v1/nodes")
    records = read(said, list[Record])
    found = explanation(records, read(known, list[NodeView]))
    if found is None:
        raise ArchimedesError(
            f"the extender at {url} remembers no decision about {key}: it was never asked about "
            "it, or has written 10,000 records since; decision_log keeps them longer"
        )
    if as_json:
        typer.echo(msgspec.json.encode(found))
    else:
        _print_explanation(found)


def nodes(
    name: Annotated[str, typer.Argument(help="One node, term by term; without it, all.")] = "",
    url: Url = _DEFAULT_URL,
    ca_file: CaFile = "",
    cert_file: CertFile = "",
    key_file: KeyFile = "",
    as_json: Json = False,
) -> None:
    """Show how much each node could promise, and how that comes about.

    Example: archimedes nodes node-07 --url http://127.0.0.1:8080
    """
    from extender.client import Extender, read
    from extender.explain import NodeView

    extender = Extender(url, ca_file, cert_file, key_file)
    (said,) = extender.ask(f"/v1/nodes/{quote(name, safe='')}" if name else "/v1/nodes")
    if said is None:
        raise ArchimedesError(f"the extender at {url} knows no node {name!r}")
    shown: _Node | list[NodeView] = read(said, _Node) if name else read(said, list[NodeView])
    if as_json:
        typer.echo(said)
    elif isinstance(shown, _Node):
        _print_node(name, shown)
    else:
        _print_nodes(shown)


def _print_explanation(found: Explanation) -> None:
    console = _console()
    tier = "offline" if found.offline else "online"
    hot = f"{found.hot} left out as hot, " if found.hot else ""
    console.print(
        f"{found.pod} ({tier}) asks {found.millicpu}m for {found.horizon_hours} h\n"
        f"decided {_when(found.time)} by model {found.model_version}, snapshot {found.snapshot}; "
        f"decisions remembered: {found.decisions}\n"
        f"{found.offered} nodes offered: {len(found.candidates)} candidates, "
        f"{found.ranked_out} ranked out, {hot}{sum(found.rejected.values())} refused"
    )
    _print_table(["nodes", "refused because"], _texts(found.rejected))
    shown = found.candidates[:_SHOWN]
    _print_table(
        ["candidate", "score", "for the spread", "could be promised"],
        [[c.node, f"{c.score:.3f}", f"{c.spread:+.3f}", f"{c.available}m"] for c in shown],
    )
    if len(found.candidates) > _SHOWN:
        console.print(f"... and {len(found.candidates) - _SHOWN} more; --json shows them")
    if found.preemption is not None:
        _print_preemption(found.preemption)
    console.print(_outcome(found))
    for text in found.would_help:
        console.print(f"  - {text}")


def _print_preemption(asked: Preemption) -> None:
    more = asked.kept - len(asked.nodes)
    named = ", ".join(asked.nodes) + (f" and {more} more" if more else "")
    _console().print(
        f"kube-scheduler proposed evictions on {asked.proposed} nodes at {_when(asked.time)}: "
        + (f"they make room on {asked.kept}: {named}" if named else "none makes enough room")
    )
    _print_table(["nodes", "no room even then, because"], _texts(asked.rejected))


def _outcome(found: Explanation) -> str:
    if found.node:
        return f"Bound to {found.node}{', and ended' if found.ended else ''}."
    if found.bind_error:
        return f"The last bind failed: {found.bind_error}."
    if not found.offline:
        return "kube-scheduler binds online pods itself: `kubectl get pod -o wide` names the node."
    if found.candidates:
        return "Not bound: kube-scheduler has chosen none of the candidates yet."
    return "No node could take it. What would help, by the nodes as they are now:"


def _print_nodes(found: list[NodeView]) -> None:
    hours = [figures.hours for figures in found[0].horizons] if found else []
    rows = [
        [
            node.node,
            f"{node.allocatable_cores:g}",
            f"{node.promised_millicpu}m",
            *(f"{node.at(h).available_millicpu}m" for h in hours),
            node.blocked,
        ]
        for node in found
    ]
    columns = ["node", "cores", "promised", *(f"left for {h} h" for h in hours), "blocked because"]
    _print_table(columns, rows)
    _console().print(f"{len(found)} nodes")


def _print_node(name: str, node: _Node) -> None:
    """Terms as rows, horizons as columns; a term that a horizon lacks is 0 there."""
    texts = {term.name: term.text for horizon in node.arithmetic for term in horizon.terms}
    amounts = [{term.name: term.millicpu for term in h.terms} for h in node.arithmetic]
    rows = [[text, *(f"{of.get(key, 0):+}m" for of in amounts)] for key, text in texts.items()]
    rows.append(["= available", *(f"{h.available_millicpu}m" for h in node.arithmetic)])
    _console().print(f"{name}, by model {node.model_version}")
    _print_table(["term", *(f"{h.hours} h" for h in node.arithmetic)], rows)
    promises = [
        [p.pod, f"{p.millicpu}m", f"{p.horizon_hours} h", p.stage, _when(p.made)]
        for p in node.promises
    ]
    _print_table(["promise", "millicores", "for", "stage", "made"], promises)
    locks = [[k.name, f"{k.millicpu}m", _when(k.start), _when(k.end), k.reason] for k in node.locks]
    _print_table(["resource lock", "withholds", "from", "until", "reason"], locks)


def _texts(counts: dict[str, int]) -> list[list[str]]:
    return [[str(count), text] for text, count in counts.items()]


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    """A table, unless it were empty."""
    from rich.table import Table

    if not rows:
        return
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console() -> Console:
    """Text from a cluster is not markup, nor obeyed; where nobody watches, lines are not cut."""
    from rich.console import Console

    class Printer(Console):
        def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - rich's
            return super().render_str(printable(text), **options)

    console = Printer(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    return console


def _when(seconds: float) -> str:
    """A time; the number where no calendar has it."""
    try:
        return utc(seconds)
    except (OverflowError, ValueError):
        return f"{seconds:g} s"
