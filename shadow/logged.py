"""Replays and comparisons as MLflow runs: parameters, metrics, JSON and the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from models.policy import Policy
from models.registry import Registry
from models.trace import Trace, digest
from models.versions import TRACE_TAG
from shadow.compare import Comparison, Sides
from shadow.figures import Figures
from shadow.report_page import write_comparison_page, write_replay_page
from shadow.result import ReplayResult


def log_replay(
    registry: Registry,
    trace: Trace,
    result: ReplayResult,
    figures: Figures,
    rows: list[tuple[str, str]],
    shown: Mapping[str, object],
) -> str:
    """Log a replay; the run's id.

    Args:
        registry: where to.
        trace, result, figures: what was replayed, and what it came to.
        rows: the lines of its table, for the page.
        shown: the JSON object that is printed, the count of machines included.

    Raises:
        RegistryError: MLflow cannot be reached, or refuses.
    """
    with TemporaryDirectory(prefix="archimedes-") as scratch:
        folder = Path(scratch)
        (folder / "replay.json").write_bytes(msgspec.json.encode(shown))
        write_replay_page(folder / "replay.html", result, figures, rows)
        return registry.log_run(
            f"replay {trace.name}",
            params={
                "trace": trace.name,
                "model": result.model_version,
                **_policy(result.policy),
                **msgspec.to_builtins(result.options),
            },
            metrics=numbers(shown),
            tags={TRACE_TAG: digest(trace)},
            artifacts=folder,
        )


def log_comparison(registry: Registry, trace: Trace, sides: Sides, comparison: Comparison) -> str:
    """Log a comparison; the run's id.

    Raises:
        RegistryError: MLflow cannot be reached, or refuses.
    """
    champion, challenger = sides.champion[0], sides.challenger[0]
    with TemporaryDirectory(prefix="archimedes-") as scratch:
        folder = Path(scratch)
        (folder / "comparison.json").write_bytes(msgspec.json.encode(comparison))
        write_comparison_page(folder / "comparison.html", sides, comparison)
        return registry.log_run(
            f"compare {trace.name}",
            params={
                "trace": trace.name,
                "champion": champion.model_version,
                "challenger": challenger.model_version,
                "seeds": len(sides.champion),
                "verdict": comparison.verdict,
                **{f"champion_{k}": v for k, v in _policy(champion.policy).items()},
                **{f"challenger_{k}": v for k, v in _policy(challenger.policy).items()},
                **msgspec.to_builtins(champion.options),
            },
            metrics=numbers(msgspec.to_builtins(comparison)),
            tags={TRACE_TAG: digest(trace)},
            artifacts=folder,
        )


def numbers(values: Mapping[str, object]) -> dict[str, float]:
    """The numbers of a JSON object by name; those inside another are OUTER.INNER, no lists."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": number for inner, number in numbers(value).items()}
        elif isinstance(value, int | float):
            found[name] = float(value)
    return found


def _policy(policy: Policy) -> dict[str, object]:
    found: dict[str, object] = msgspec.to_builtins(policy)
    return found
