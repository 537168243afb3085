"""Resource locks: CPU that is kept from reclaiming in a time window, for announced events.

They stand in one ConfigMap, a key for each lock and its YAML as the text, so that one that cannot
be read leaves the others alone. docs/locks.md describes the form.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
import yaml
from msgspec import Meta

_WORKLOAD = re.compile(r"[^/\s]+/[^/\s]+/[^/\s]+")
_MAX_TEXT = 300
_MAX_DEPTH = 8
"""Of collections within collections; a lock has two, and PyYAML's own recursion has no bound."""

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where built

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
        written = msgspec.convert(_content(text), _Text)
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


class _OnceLoader(_SafeLoader):  # type: ignore[misc]
    """YAML in which each key of a mapping stands once: of two, one would be ignored."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value} stands there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        content: dict[Hashable, object] = super().construct_mapping(node, deep)
        return content


def _content(text: str) -> object:
    """What a YAML text holds, as plain objects. Raises LockError."""
    try:
        _check_shape(text)
        return yaml.load(text, _OnceLoader)  # noqa: S506 - a safe one
    except LockError:
        raise
    except yaml.YAMLError as e:
        raise LockError(f"is not YAML: {e}") from e
    except ValueError as e:  # such as the 31st of February
        raise LockError(f"is not a lock: {e}") from e
    except Exception as e:  # PyYAML raises KeyError for `!!bool x`, and the like
        raise LockError("is not YAML: a value is not what its tag says") from e


def _check_shape(text: str) -> None:
    """Refuse what PyYAML would not survive: it recurses in C, and copies what is referred to."""
    depth = 0
    for event in yaml.parse(text, _SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise LockError(f"expected what it means in place of *{event.anchor}")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise LockError("is nested too deeply")


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
