"""Every decision with its reasons, for people (`why`), for the console and for the live shadow."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from extender.log_file import LogFile

MAX_BYTES = 64 * 1024 * 1024
"""Size at which a log file is rotated; one predecessor is kept."""

MAX_KEPT = 64 * 1024 * 1024
"""Bytes that the records in memory take at most: more than 10,000 decisions with 32 candidates
each. But a pod's annotation may ask for more candidates, and callers choose names."""

MAX_NODES = 32
"""Nodes that a record names beside candidates: of those of a preempt call, for which kube-scheduler
proposes a tenth of the cluster's; of refused ones."""


class Candidate(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A node that was offered: its score and the millicores that it could have promised.

    ``spread`` is what it was worth beyond its score where it was left alone, for how few of the
    pod's siblings are there.
    """

    node: str
    score: float
    available: int
    spread: float = 0.0


class Decision(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    gc=False,
    omit_defaults=True,
    tag_field="kind",
    tag="filter",
):
    """One filter call.

    rejected: counts the nodes by failure text. hot: how many nodes were ranked out for being hot.
    refused: the offered nodes, where an offline pod got none of them, and they are some of those
    that are known and no more than ``MAX_NODES``.
    """

    time: float
    pod: str
    uid: str
    offline: bool
    millicpu: int
    horizon_hours: int
    snapshot: int
    model_version: str
    offered: int
    candidates: tuple[Candidate, ...]
    rejected: dict[str, int]
    hot: int = 0
    refused: tuple[str, ...] = ()


class Binding(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind", tag="bind"):
    """One bind call. ``error`` is empty where the pod was bound."""

    time: float
    pod: str
    uid: str
    node: str
    millicpu: int
    horizon_hours: int
    model_version: str
    error: str


class Preemption(
    msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind", tag="preempt"
):
    """One preempt call.

    proposed: nodes that kube-scheduler would evict pods from. kept: how many of them would then
    have room; nodes: the first ``MAX_NODES`` of these. rejected: the others by failure text.
    """

    time: float
    pod: str
    uid: str
    offline: bool
    millicpu: int
    horizon_hours: int
    snapshot: int
    model_version: str
    proposed: int
    kept: int
    nodes: tuple[str, ...]
    rejected: dict[str, int]


class End(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind", tag="end"):
    """A bound offline pod has left: it finished, or was deleted or evicted."""

    time: float
    pod: str
    uid: str
    node: str


Record = Decision | Binding | Preemption | End

_OVERHEAD = 150
"""Bytes for what is kept of a record beside its texts."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


class DecisionLog:
    """The last records in memory, and all of them in a JSON-lines file where a path is given.

    In memory they are JSON as well: a third of the objects' size, and nothing for the garbage
    collector to look at.
    """

    def __init__(
        self,
        path: Path | None = None,
        keep: int = 10_000,
        keep_bytes: int = MAX_KEPT,
        lost: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Open the file, if there is one.

        Args:
            path: of the file.
            keep, keep_bytes: records in memory, and what they take, at most.
            lost: is told how many records are missing in the file.

        Raises:
            OSError: the file cannot be opened.
        """
        self._recent: deque[bytes] = deque()
        self._pods: deque[str] = deque()  # of the records
        self._keep, self._keep_bytes = keep, keep_bytes
        self._bytes = 0
        self._file = None if path is None else LogFile(path, MAX_BYTES, lost)

    def append(self, record: Record) -> None:
        """Add a record; never raises, whatever becomes of the file."""
        line = _encoder.encode(record)
        self._recent.append(line)
        self._pods.append(record.pod)
        self._bytes += _size(line, record.pod)
        while len(self._recent) > self._keep or self._bytes > self._keep_bytes:
            self._bytes -= _size(self._recent.popleft(), self._pods.popleft())
        if self._file is not None:
            self._file.write(line)

    def recent(self, pod: str = "", limit: int = 100) -> list[bytes]:
        """The newest records first, each as JSON, of one ``namespace/name`` or of all pods."""
        newest = zip(reversed(self._recent), reversed(self._pods), strict=True)
        return list(islice((line for line, of in newest if not pod or of == pod), limit))

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        if self._file is not None:
            self._file.close()


def _size(line: bytes, pod: str) -> int:
    return len(line) + len(pod) + _OVERHEAD


def as_array(lines: Iterable[bytes]) -> bytearray:
    """Records as one JSON array, put together in a thread without keeping others waiting.

    Ten thousand of them are 29 MB, which in one piece would hold up every call for 30 ms.
    """
    array = bytearray(b"[")
    for line in lines:
        if len(array) > 1:
            array += b","
        array += line
    array += b"]"
    return array


def decode_record(line: bytes) -> Record:
    """The record of a line. Raises msgspec.DecodeError where it is none."""
    record: Record = _decoder.decode(line)
    return record


def read_log(path: Path) -> Iterator[Record]:
    """The records of a log file, oldest first; a half-written last line is left out.

    Raises:
        msgspec.DecodeError: a complete line is not a record.
    """
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield decode_record(line)
