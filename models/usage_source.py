"""Where usage comes from: what a source gives, and how Prometheus is reached."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from models.arrays import Floats32

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class PrometheusSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the pods' CPU usage comes from."""

    url: str = ""
    """Address of the Prometheus-compatible server, such as http://prometheus.monitoring:9090.
    Empty: there is no usage, so nothing is ever promised."""

    cluster_label: dict[str, str] = {}
    """Label matchers, name to value, that select this cluster's series, such as {cluster: blue}.
    Needed where one server holds several clusters: their pods may have the same names."""

    query: str = ""
    """PromQL whose result is one series of cores for each pod, with labels namespace and pod.
    Empty: the rate of container_cpu_usage_seconds_total, the highest where a container is scraped
    more than once; cluster_label is then added to it."""

    history_days: Annotated[int, Meta(ge=1, le=7)] = 7
    """Days of usage that are read at the start. Forecasters look back a week at most; fewer days
    start faster and know less of the weekly rhythm."""

    delay_seconds: Annotated[float, Meta(ge=0, le=300)] = 30.0
    """Seconds after its end at which a window is asked for: scrapes and remote writes arrive late.
    Lower is fresher, at the risk of incomplete windows (these are read again with the next)."""

    timeout_seconds: Annotated[float, Meta(gt=0, le=600)] = 60.0
    """Seconds that one query may take. Queries run in the background, so nothing waits for them."""

    token_file: str = ""
    """File with a bearer token, read again for each query. Empty: none is sent."""

    ca_file: str = ""
    """File with the certificates of the server's authority. Empty: the system's."""


def is_address(url: str) -> bool:
    """Whether a URL names a server that HTTP can reach."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port that is no number
        return False


def problems(prometheus: PrometheusSettings) -> Iterator[str]:
    """What types cannot say about the settings, each in a sentence that names the setting."""
    if prometheus.url and not is_address(prometheus.url):
        yield f"prometheus.url: {prometheus.url!r} is no http:// or https:// address"
    for label in prometheus.cluster_label:
        if not _LABEL.fullmatch(label):
            yield f"prometheus.cluster_label: {label!r} is not a label name"
    if prometheus.query and prometheus.cluster_label:
        yield "prometheus.query: put the cluster's label into the query and leave cluster_label out"


class UsageError(Exception):
    """Usage could not be read; the text says why. What is known stays, and grows older."""


@dataclass(frozen=True, slots=True)
class UsageBlock:
    """Usage of K pods in W consecutive windows.

    start: of the first window, seconds since the epoch, a multiple of 300.
    pods: ``namespace/name``, each once. cpu: [K, W] cores, NaN where not observed.
    """

    start: int
    pods: Sequence[str]
    cpu: Floats32


class UsageSource(Protocol):
    """Where usage comes from: Prometheus, or a trace."""

    async def read(self, start: int, windows: int) -> UsageBlock:
        """The windows from ``start`` on, of all pods of the cluster. Raises UsageError."""

    async def close(self) -> None:
        """Close connections."""
