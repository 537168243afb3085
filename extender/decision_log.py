"""Every decision with its reasons, for people (`why`), for the console and for the live shadow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

MAX_BYTES = 64 * 1024 * 1024
"""Size at which a log file is rotated; one predecessor is kept."""

MAX_KEPT = 64 * 1024 * 1024
"""Bytes that the records in memory take at most, about: enough for 10,000 decisions with 32
candidates each. But a pod's annotation may ask for more candidates, and callers choose names."""

MAX_NODES = 32
"""Nodes of a preempt call that are named: kube-scheduler proposes a tenth of the cluster's."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A node that was offered: its score and the millicores that it could have promised."""

    node: str
    score: float
    available: int


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag_field="kind", tag="filter"):
    """One filter call. ``rejected`` counts the nodes by failure text."""

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
"""Bytes for each text of a record and for the numbers beside it."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


class DecisionLog:
    """The last records in memory, and all of them in a JSON-lines file where a path is given."""

    def __init__(
        self, path: Path | None = None, keep: int = 10_000, keep_bytes: int = MAX_KEPT
    ) -> None:
        """``keep``, ``keep_bytes``: records in memory, and what they take, at most."""
        self._recent: deque[Record] = deque()
        self._keep, self._keep_bytes = keep, keep_bytes
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._path = path
        self._file: IO[bytes] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")

    def append(self, record: Record) -> None:
        """Add a record; the file is buffered by the operating system and rotated by size."""
        self._recent.append(record)
        self._sizes.append(_size(record))
        self._bytes += self._sizes[-1]
        while len(self._recent) > self._keep or self._bytes > self._keep_bytes:
            self._recent.popleft()
            self._bytes -= self._sizes.popleft()
        if self._file is None or self._path is None:
            return
        self._file.write(_encoder.encode(record) + b"\n")
        if self._file.tell() > MAX_BYTES:
            self._file.close()
            self._path.replace(self._path.with_suffix(self._path.suffix + ".1"))
            self._file = self._path.open("ab")

    def recent(self, pod: str = "", limit: int = 100) -> list[Record]:
        """The newest records first, of one ``namespace/name`` or of all pods."""
        found: list[Record] = []
        for record in reversed(self._recent):
            if not pod or record.pod == pod:
                found.append(record)
                if len(found) == limit:
                    break
        return found

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _size(record: Record) -> int:
    """Bytes that a record takes in memory, roughly."""
    texts = [record.pod, record.uid]
    match record:
        case Decision():
            texts += [candidate.node for candidate in record.candidates]
            texts += record.rejected
        case Preemption():
            texts += record.nodes
            texts += record.rejected
        case Binding():
            texts += [record.node, record.error]
        case End():
            texts.append(record.node)
    return _OVERHEAD * len(texts) + sum(map(len, texts))


def encode_records(records: Sequence[Record]) -> bytes:
    """A JSON array, one record at a time: in a thread it leaves the interpreter to others between.

    Ten thousand of them are 29 MB, which in one piece would hold up every call for 80 ms.
    """
    return b"[" + b",".join(map(_encoder.encode, records)) + b"]"


def read_log(path: Path) -> Iterator[Record]:
    """The records of a log file, oldest first; a half-written last line is left out.

    Raises:
        msgspec.DecodeError: a complete line is not a record.
    """
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _decoder.decode(line)
