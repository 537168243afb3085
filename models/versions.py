"""What is known about a registered version beside its files."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

TRACE_TAG = "archimedes.trace_sha256"
"""Tag of runs and versions: the digest of the trace that was trained on."""

TARGET_TAG = "archimedes.target"
"""Tag of runs and versions: the accepted probability of a violation."""

FORECASTER_TAG = "archimedes.forecaster"
"""Tag of runs and versions: the forecaster's name."""

REVISION_TAG = "archimedes.git_revision"
"""Tag of runs and versions: the revision of the code that trained."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One registered version; ``created`` is in seconds since the epoch."""

    version: str
    aliases: tuple[str, ...]
    created: float
    run_id: str
    tags: dict[str, str]
    metrics: dict[str, float]


class DataSource(msgspec.Struct, frozen=True, kw_only=True):
    """The trace that a run read: shown as the run's dataset."""

    name: str
    digest: str


def metric_lines(metrics: Mapping[str, float]) -> list[str]:
    """One line for each figure: ``violation_rate_1h`` and ``violation_rate_24h`` share theirs."""
    lines: dict[str, list[str]] = {}
    for name in sorted(metrics, key=lambda name: (len(name), name)):
        figure, _, hours = name.rpartition("_")
        lines.setdefault(figure or name, []).append(f"{hours:>3} {metrics[name]:<8.4g}")
    return [f"{figure:<16} {' '.join(values)}".rstrip() for figure, values in sorted(lines.items())]
