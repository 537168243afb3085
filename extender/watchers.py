"""What two smaller watches report to the state: resource locks, and runs that have finished."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import structlog

from extender.locks import read_locks
from extender.ports import Feed
from extender.runs import finished_run
from extender.state import State
from extender.telemetry import Telemetry
from models.kube.types import ConfigMap, FinishedPod, Metadata

log = structlog.get_logger()


def lock_feed(state: State, telemetry: Telemetry) -> Feed[ConfigMap]:
    """Where a cluster reports the ConfigMap with the locks; the state is not ready before it has.

    A ConfigMap that is deleted, or was never made, holds no locks. While the watch is broken
    nothing is reported, so the last known locks stay.
    """
    state.expect_locks()

    def put(found: ConfigMap) -> str:
        locks, problems = read_locks(found.data or {})
        state.lock(locks, problems)
        telemetry.invalid_locks.clear()
        for name, problem in problems.items():
            telemetry.invalid_locks.labels(name).set(1)
            log.warning("resource lock ignored", lock=name, problem=problem)
        log.info("resource locks read", locks=[lock.name for lock in locks])
        return (found.metadata or Metadata()).name or ""

    def sift(listed: Collection[str]) -> Iterator[None]:
        if not listed:
            put(ConfigMap())
        yield

    def remove(_: ConfigMap) -> None:
        put(ConfigMap())

    return Feed(put, remove, sift, lambda: None)


def run_feed(state: State, resource: str) -> Feed[FinishedPod]:
    """Where a cluster reports pods that have succeeded; those that it forgets have still run."""

    def put(pod: FinishedPod) -> str:
        found = finished_run(pod, resource)
        if found is not None:
            state.runs.add(*found)
        return (pod.metadata and pod.metadata.uid) or ""

    return Feed(put, lambda _: None, lambda _: iter(()), lambda: None)
