"""Every classical predictor of the evaluation, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from models.classical.borg import BorgDefault, KoordinatorBatch
from models.classical.crane import CraneDsp, CranePercentile
from models.classical.histogram import Koordinator, Vpa
from models.classical.maximum import Maximum
from models.classical.percentile import AggregatePercentile, RcLike
from models.classical.seasonal import SeasonalMax, TrailingMax, WindowMaxima
from models.classical.sigma import NSigma
from models.errors import ArtifactError
from models.forecaster import Forecaster
from models.grid import DAY, WEEK

_ALL: tuple[Forecaster, ...] = (
    BorgDefault(),
    RcLike("rc-like-p95-24h", 0.95, DAY),
    RcLike("rc-like-p99-24h", 0.99, DAY),
    RcLike("rc-like-p95-7d", 0.95, WEEK),
    RcLike("rc-like-p99-7d", 0.99, WEEK),
    NSigma("n-sigma-24h", DAY),
    NSigma("n-sigma-7d", WEEK),
    Maximum("max-24h", NSigma("n-sigma-24h", DAY), RcLike("rc-like-p99-24h", 0.99, DAY)),
    Maximum("max-7d", NSigma("n-sigma-7d", WEEK), RcLike("rc-like-p99-7d", 0.99, WEEK)),
    Vpa(),
    Koordinator(),
    KoordinatorBatch(),
    CranePercentile(),
    CraneDsp(),
    SeasonalMax(),
    TrailingMax("trailing-max-24h", DAY),
    TrailingMax("trailing-max-7d", WEEK),
    WindowMaxima("window-max-p90", 0.90),
    WindowMaxima("window-max-p99", 0.99),
    AggregatePercentile("aggregate-p95-24h", 0.95, DAY),
    AggregatePercentile("aggregate-p99-24h", 0.99, DAY),
    AggregatePercentile("aggregate-p95-7d", 0.95, WEEK),
    AggregatePercentile("aggregate-p99-7d", 0.99, WEEK),
)

CLASSICAL: Mapping[str, Forecaster] = MappingProxyType({p.name: p for p in _ALL})
"""Name -> predictor, in the order of the evaluation's table."""


def classical(name: str) -> Forecaster:
    """The classical predictor of a name.

    Raises:
        ArtifactError: there is none.
    """
    try:
        return CLASSICAL[name]
    except KeyError as e:
        known = ", ".join(CLASSICAL)
        raise ArtifactError(f"no classical predictor is called '{name}'; known: {known}") from e
