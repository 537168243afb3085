"""Options that several commands around the replay share, and how they are checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from models.errors import SettingsError

if TYPE_CHECKING:
    from models.policy import Policy
    from shadow.options import ReplayOptions

DEFAULT_MODEL = "koordinator"
"""Needs no training and no registry: the predictor that ships in the best known co-location."""


def _existing(log: Path) -> Path:
    if not log.is_file():
        raise SettingsError(f"decision log {log} does not exist; name decision_log's file")
    return log


Decisions = Annotated[
    Path,
    typer.Option("--decisions", callback=_existing, help="The extender's decision log."),
]
Nodes = Annotated[
    int | None, typer.Option("--nodes", help="So many equal nodes instead of the trace's own.")
]
NodeCpu = Annotated[float | None, typer.Option("--node-cpu", help="Cores of an equal node.")]
OfflineLoad = Annotated[
    float,
    typer.Option(
        "--offline-load",
        help="Where the trace has no offline pods: what generated ones ask, as share of idle CPU.",
    ),
]
Refresh = Annotated[
    int, typer.Option("--refresh-minutes", help="Minutes between forecasts, a multiple of 5.")
]
Blur = Annotated[
    float,
    typer.Option("--blur", help="Spread (log) of expected against real durations; 0 knows them."),
]
NodesToScore = Annotated[
    int,
    typer.Option(
        "--nodes-to-score",
        help="percentageOfNodesToScore of kube-scheduler's configuration; 0 is its own choice.",
    ),
]
Evict = Annotated[
    bool, typer.Option("--evict", help="Evict offline pods from nodes above the ceiling.")
]
Html = Annotated[
    Path | None, typer.Option("--html", help="Write a page with the plots to this file.")
]


def replay_options(
    *,
    hours: float | None,
    nodes: int | None,
    node_cpu: float | None,
    seed: int,
    offline_load: float,
    refresh_minutes: int,
    blur: float,
    nodes_to_score: int,
    evict: bool,
) -> ReplayOptions:
    """What the command line says, checked.

    Raises:
        SettingsError: an option is out of range.
    """
    from models.grid import WINDOW
    from models.struct_words import in_words
    from shadow.options import ReplayOptions

    given = {
        "hours": hours,
        "nodes": nodes,
        "node_cpu": node_cpu,
        "seed": seed,
        "offline_load": offline_load,
        "refresh": refresh_minutes * 60,
        "duration_blur": blur,
        "nodes_to_score": nodes_to_score,
        "evict": evict,
    }
    if refresh_minutes < 1 or refresh_minutes * 60 % WINDOW:
        raise SettingsError(
            f"--refresh-minutes {refresh_minutes}: must be a multiple of {WINDOW // 60}, the "
            "minutes of a usage window"
        )
    try:
        return msgspec.convert(given, ReplayOptions)
    except msgspec.ValidationError as e:
        field, _, wrong = in_words(str(e), ReplayOptions, "option").partition(":")
        option = "blur" if field == "duration_blur" else field.replace("_", "-")
        raise SettingsError(f"--{option}:{wrong}, got {given[field]}") from e


def read_policy(file: Path | None) -> Policy | None:
    """The policy in a file.

    Raises:
        SettingsError: it cannot be read, or a field is unknown, ill-typed, out of range or twice
            there.
    """
    if file is None:
        return None
    from models.policy import Policy
    from models.yaml_file import read_yaml, to_struct

    return read_yaml(file, "policy file", lambda content: to_struct(content, Policy, "field"))
