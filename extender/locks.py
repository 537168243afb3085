"""Resource locks: CPU that is kept from reclaiming in a time window, for announced events.

They stand in one ConfigMap, a key for each lock and its YAML as the text, so that one that cannot
be read leaves the others alone. docs/locks.md describes the form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from models.yaml_file import NotYamlError, plain_objects

_WORKLOAD = re.compile(r"[^/\s]+/[^/\s]+/[^/\s]+")
_MAX_TEXT = 300

Name = Annotated[str, Meta(min_length=1)]
Moment = Annotated[datetime, Meta(tz=True)]


@dataclass(frozen=True, slots=True)
class Lock:
    """CPU that is withheld on some nodes from ``start`` until ``end``.

    start, end: seconds since the epoch. cores, share: of each node, in cores or as a share of its
    allocatable CPU; the other is 0. nodes: names, or None for all. workload: the one whose pods'
    nodes it concerns instead, ``namespace/kind/name``, or empty.
    """

    name: str
    start: float
    end: float
    cores: float
    share: float
    nodes: frozenset[str] | None
    workload: str
    reason: str

    def overlaps(self, now: float, seconds: float) -> bool:
        """Whether a promise made now for so many seconds would run into the window."""
        return self.start <= now + seconds and now < self.end


class _Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lock as it is written."""

    start: Moment
    end: Moment
    reason: Name
    cores: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    share: Annotated[float, Meta(gt=0, le=1)] | None = None
    nodes: str | Annotated[list[Name], Meta(min_length=1)] | None = None
    workload: str | None = None


class LockError(ValueError):
    """What is wrong with a lock, in words for whoever wrote it."""


def read_locks(data: Mapping[str, str]) -> tuple[tuple[Lock, ...], dict[str, str]]:
    """The locks of a ConfigMap's data, and by name what is wrong with those that cannot be read."""
    locks: list[Lock] = []
    problems: dict[str, str] = {}
    for name, text in sorted(data.items()):
        try:
            locks.append(read_lock(name, text))
        except LockError as e:
            problems[name] = " ".join(str(e).split())[:_MAX_TEXT]
    return tuple(locks), problems


def read_lock(name: str, text: str) -> Lock:
    """One lock.

    Raises:
        LockError: it is malformed or contradicts itself.
    """
    try:
        written = msgspec.convert(plain_objects(text), _Text)
    except NotYamlError as e:
        raise LockError(str(e)) from e
    except msgspec.ValidationError as e:
        raise LockError(_sentence(str(e))) from e
    for problem in _contradictions(written):
        raise LockError(problem)
    return Lock(
        name=name,
        start=written.start.timestamp(),
        end=written.end.timestamp(),
        cores=written.cores or 0.0,
        share=written.share or 0.0,
        nodes=frozenset(written.nodes) if isinstance(written.nodes, list) else None,
        workload=written.workload or "",
        reason=written.reason,
    )


def _sentence(problem: str) -> str:
    """Msgspec's text with the field first: ``... - at `$.start` `` is start: ..."""
    text, _, field = problem.replace("`", "").partition(" - at $.")
    return f"{field}: {text[:1].lower()}{text[1:]}" if field else text.replace("Object", "it")


def _contradictions(written: _Text) -> list[str]:
    found = []
    if written.end <= written.start:
        found.append("end: must be later than start")
    if (written.cores is None) == (written.share is None):
        found.append("say either cores or share, a share of each node's allocatable CPU")
    if (written.nodes is None) == (written.workload is None):
        found.append('say either nodes (a list of names, or "*") or workload')
    if isinstance(written.nodes, str) and written.nodes != "*":
        found.append('nodes: must be a list of names, or "*" for all')
    if isinstance(written.nodes, list) and "*" in written.nodes:
        found.append('nodes: "*" in a list is no node\'s name; for all nodes write nodes: "*"')
    if written.workload is not None and not _WORKLOAD.fullmatch(written.workload):
        found.append("workload: must be namespace/kind/name, such as shop/Deployment/checkout")
    return found
