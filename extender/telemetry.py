"""What the server reports about itself: Prometheus metrics and structured logs."""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from models.model import Model

_LATENCY = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
_LAG = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Telemetry:
    """All metrics of one server, in a registry of its own; each explains itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Calls
        self.seconds = Histogram(
            "archimedes_call_seconds",
            "Seconds from a request's body being read to its answer, by verb.",
            ["verb"],
            buckets=_LATENCY,
            registry=self.registry,
        )
        self.decisions = self._counter(
            "archimedes_decisions",
            "Filter calls by tier (offline, online) and outcome (placeable, refused, error).",
            ["tier", "outcome"],
        )
        self.refused_nodes = self._counter(
            "archimedes_refused_nodes", "Offered nodes that were refused, by reason.", ["reason"]
        )
        self.binds = self._counter(
            "archimedes_binds", "Bind calls by outcome (bound, refused, failed).", ["outcome"]
        )
        self.disconnects = self._counter(
            "archimedes_disconnects", "Callers that left before their answer was written."
        )
        self.bad_requests = self._counter(
            "archimedes_bad_requests", "Requests that are not what the protocol says."
        )
        self.crowded_out = self._counter(
            "archimedes_crowded_out", "Connections that were closed because too many were open."
        )
        self.bad_annotations = self._counter(
            "archimedes_bad_annotations", "Filtered pods with a malformed annotation.", ["name"]
        )
        self.tls_reloads = self._counter(
            "archimedes_tls_reloads",
            "Looks at changed certificates, by outcome (renewed, failed: the old ones stay).",
            ["outcome"],
        )
        self.events = self._counter(
            "archimedes_events",
            "Events on pods by outcome (written, failed, dropped: too many waited).",
            ["outcome"],
        )
        # Promises
        self.reclaimable = self._gauge(
            "archimedes_reclaimable_millicpu",
            "Millicores promised or promisable for a day, but for locks and blocked nodes.",
        )
        self.promised = self._gauge(
            "archimedes_promised_millicpu", "Millicores promised to bound offline pods."
        )
        self.blocked_nodes = self._gauge(
            "archimedes_blocked_nodes", "Nodes that get no new promises, by reason.", ["reason"]
        )
        self.expired = self._counter(
            "archimedes_holds_expired", "Holds that ended because no bind named a node in time."
        )
        self.overdue = self._gauge(
            "archimedes_promises_overdue",
            "Bound promises past their horizon that their nodes could not cover at the last look.",
        )
        self.renewed = self._counter(
            "archimedes_promises_renewed",
            "Promises past their horizon that were made once more, as their nodes cover them.",
        )
        self.withheld = self._gauge(
            "archimedes_withheld_millicpu",
            "Millicores that resource locks keep from promises for a day in the whole cluster.",
        )
        self.invalid_locks = self._gauge(
            "archimedes_invalid_locks", "1 for each resource lock that cannot be read.", ["lock"]
        )
        self.workloads_timed = self._gauge(
            "archimedes_workloads_timed", "Offline workloads of which finished runs are known."
        )
        self.learned_file_errors = self._counter(
            "archimedes_learned_file_errors",
            "Failures to read or write the file of what was learned; it is learned anew meanwhile.",
        )
        self.unlogged = self._counter(
            "archimedes_unlogged_records",
            "Records missing in the decision log's file, where it could not be written.",
        )
        self.unrecorded = self._counter(
            "archimedes_recording_dropped",
            "Decisions and refreshes missing in the recording: the disk was full or too slow.",
        )
        # Forecasts
        self.usage_end = self._gauge(
            "archimedes_usage_end_timestamp_seconds", "When the newest usage window ended."
        )
        self.usage_errors = self._counter(
            "archimedes_usage_errors", "Usage queries that failed; the next refresh tries again."
        )
        self.refresh_seconds = self._gauge(
            "archimedes_refresh_seconds", "Seconds that the last refresh of forecasts took."
        )
        self.model = self._gauge(
            "archimedes_model_info",
            "1 for the model version that serves, and where it came from.",
            ["version", "forecaster", "source"],
        )
        self.node_windows = self._counter(
            "archimedes_node_windows",
            "Usage windows of nodes that were compared with the forecast then in force.",
        )
        self.violations = self._counter(
            "archimedes_violations", "Those in which real usage was above the 1 h forecast."
        )
        # Surroundings
        self.watch_silence = self._gauge(
            "archimedes_watch_silence_seconds", "Seconds since the API server was last heard."
        )
        self.relists = self._counter(
            "archimedes_relists", "Complete lists read from the API server.", ["kind"]
        )
        self.watch_errors = self._counter(
            "archimedes_watch_errors", "Watches that ended with an error.", ["kind"]
        )
        self.loop_lag = Histogram(
            "archimedes_loop_lag_seconds",
            "Seconds by which the event loop was late, probed every 5 ms.",
            buckets=_LAG,
            registry=self.registry,
        )
        self.loop_errors = self._counter(
            "archimedes_loop_errors",
            "Crashes of background loops; each is started again.",
            ["loop"],
        )

    def serving(self, model: Model | None, source: str) -> None:
        """Report which model serves; none where none does."""
        self.model.clear()
        if model is not None:
            self.model.labels(model.version, model.forecaster.name, source).set(1)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self.registry)

    def _gauge(self, name: str, text: str, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or [], registry=self.registry)


def configure_logs(level: str) -> None:
    """Log JSON lines with UTC times to stderr from ``level`` on, other libraries' logs included."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
