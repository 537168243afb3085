"""What decisions were made on, in a form that they can be made again from.

Beside a decision log stands a folder ``FILE.recording`` of segments, named by the microsecond at
which each begins. A segment is a sequence of frames (length, CRC-32, zlib-compressed MessagePack of
a list of entries) and can be read without the others: it begins with a header and the last refresh,
and its first decision holds whole arrays. Later ones hold the rows that have changed since.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from extender.decide import Alone, Ask, Habit, Verdicts, decide
from extender.node_index import NodeIndex
from extender.snapshot import Snapshot
from models.arrays import Floats, Ints
from models.policy import Policy

FORMAT = 1
SUFFIX = ".recording"
SEGMENT = ".segment"

NOT_KEPT = frozenset({"usage_age"})
"""Arrays that change every second and that no decision reads: ``blocked`` says what follows."""

_PODS_AT_ONCE = 5_000
"""Pods that are encoded in one go, which holds up other threads: the event loop for half a ms."""

_HEAD = struct.Struct("<II")
_MAX_FRAME = 2**30


class Patch(msgspec.Struct, frozen=True, array_like=True):
    """An array: all of it, or some rows (int32) where ``rows`` is given."""

    dtype: str
    shape: tuple[int, ...]
    values: bytes
    rows: bytes | None = None


class Header(msgspec.Struct, frozen=True, kw_only=True, tag="header"):
    """The beginning of a segment; ``advertise_share`` bounds what a node is promised."""

    format: int
    advertise_share: float


class Refreshed(msgspec.Struct, frozen=True, kw_only=True, tag="refresh"):
    """A forecast that went into service, and the pods that it was made for.

    Fields, with shapes and units:
        time: seconds since the epoch; usage_end: those up to which usage was known.
        nodes: N names; allocatable: [N] cores; forecast, expected: [N, H] cores (float64).
        came: pods that are new since the refresh before, or have changed: lists of `OnlinePod`,
            encoded. gone: those that are no longer there.
        whole: whether ``came`` holds all pods.
        usage: [N] cores that the online pods of each node used in the 5 minutes up to
            ``usage_end``, NaN where not known; None in recordings of before it was kept.
    """

    time: float
    usage_end: int
    model_version: str
    nodes: tuple[str, ...]
    allocatable: Patch
    forecast: Patch
    expected: Patch
    came: tuple[msgspec.Raw, ...]
    gone: tuple[str, ...]
    whole: bool
    usage: Patch | None = None


class OnlinePod(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An online pod on a node: ``namespace/name``, request in cores, start in epoch seconds.

    workload: as in `extender.ask.PodFacts`.
    """

    key: str
    node: str
    request: float
    started: float
    workload: str


class Decided(msgspec.Struct, frozen=True, kw_only=True, tag="decision"):
    """What one logged decision was made on; it is the log's record of this UID and time.

    scalars, arrays: the snapshot's fields, where they differ from those of the decision before.
    named, dropped: the same for its index. rows: offered rows as differences (int32).
    profile, home: of the pod's `Habit`. passed_over, replicas: of `Alone` (int32), where one node
    was to be left.
    """

    time: float
    uid: str
    ask: Ask
    candidates: int
    profile: Patch | None
    home: int
    rows: bytes
    policy: Policy | None
    scalars: dict[str, float | int | str | None]
    arrays: dict[str, Patch]
    named: dict[str, int]
    dropped: tuple[str, ...]
    passed_over: bytes | None = None
    replicas: bytes = b""


Entry = Header | Refreshed | Decided
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Entry])
_pods = msgspec.msgpack.Decoder(list[OnlinePod])


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision with all that it was made on; `again` makes it again."""

    time: float
    uid: str
    snapshot: Snapshot
    rows: Ints
    ask: Ask
    policy: Policy
    candidates: int
    habit: Habit
    alone: Alone | None

    def again(self) -> Verdicts:
        """The verdicts of production's own function."""
        return decide(
            self.snapshot,
            self.rows,
            self.ask,
            self.policy,
            self.candidates,
            self.habit,
            self.alone,
        )


@dataclass(frozen=True, slots=True)
class Refresh:
    """A forecast in service, with all online pods on nodes; shapes as in `Refreshed`."""

    time: float
    usage_end: int
    model_version: str
    nodes: tuple[str, ...]
    allocatable: Floats
    forecast: Floats
    expected: Floats
    pods: Mapping[str, OnlinePod]
    advertise_share: float
    usage: Floats | None = None


class Encoder:
    """Turns what happened into entries that hold what has changed; one for each segment."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._index: Mapping[str, int] = {}
        self._policy: Policy | None = None
        self._pods: Mapping[str, OnlinePod] | None = None

    def refresh(self, refresh: Refresh) -> Refreshed:
        """The entry of a refresh."""
        before, now = self._pods or {}, refresh.pods
        self._pods = now
        came = [pod for key, pod in now.items() if before.get(key) != pod]
        parts = range(0, len(came), _PODS_AT_ONCE)
        return Refreshed(
            time=refresh.time,
            usage_end=refresh.usage_end,
            model_version=refresh.model_version,
            nodes=refresh.nodes,
            allocatable=_whole(refresh.allocatable),
            forecast=_whole(refresh.forecast),
            expected=_whole(refresh.expected),
            came=tuple(msgspec.Raw(_encoder.encode(came[at : at + _PODS_AT_ONCE])) for at in parts),
            gone=tuple(key for key in before if key not in now),
            whole=not before,
            usage=None if refresh.usage is None else _whole(refresh.usage),
        )

    def decision(self, recorded: Recorded) -> Decided:
        """The entry of a decision."""
        scalars: dict[str, float | int | str | None] = {}
        arrays: dict[str, Patch] = {}
        for name in Snapshot.__struct_fields__:
            value = getattr(recorded.snapshot, name)
            if name == "index" or name in NOT_KEPT:
                continue
            last = self._last.get(name)
            if isinstance(value, np.ndarray):
                if value is not last and (patch := _patch(name, last, value)) is not None:
                    arrays[name] = patch
            elif name not in self._last or type(value) is not type(last) or value != last:
                scalars[name] = value
            self._last[name] = value
        named, dropped = self._renamed(recorded.snapshot.index)
        policy = None if recorded.policy == self._policy else recorded.policy
        profile, alone = recorded.habit.profile, recorded.alone
        self._policy = recorded.policy
        return Decided(
            time=recorded.time,
            uid=recorded.uid,
            ask=recorded.ask,
            candidates=recorded.candidates,
            profile=None if profile is None else _whole(profile),
            home=recorded.habit.home,
            rows=_packed(np.diff(recorded.rows, prepend=0)),
            policy=policy,
            scalars=scalars,
            arrays=arrays,
            named=named,
            dropped=dropped,
            passed_over=None if alone is None else _packed(alone.passed_over),
            replicas=b"" if alone is None else _packed(alone.replicas),
        )

    def _renamed(self, index: Mapping[str, int]) -> tuple[dict[str, int], tuple[str, ...]]:
        last, self._index = self._index, index
        if index is last:
            return {}, ()
        named = {name: row for name, row in index.items() if last.get(name) != row}
        return named, tuple(name for name in last if name not in index)


class Decoder:
    """Turns a segment's entries back into what happened."""

    def __init__(self) -> None:
        self._share = 1.0
        self._pods: dict[str, OnlinePod] = {}
        self._fields: dict[str, Any] = {}
        self._index = NodeIndex()
        self._policy = Policy()

    def add(self, entry: Entry) -> Refresh | Recorded | None:
        """What an entry tells; None for a header.

        Raises:
            msgspec.ValidationError: the header is of another format.
        """
        match entry:
            case Header():
                if entry.format != FORMAT:
                    raise msgspec.ValidationError(f"format {entry.format}, not {FORMAT}")
                self._share = entry.advertise_share
                return None
            case Refreshed():
                return self._refresh(entry)
            case Decided():
                return self._decision(entry)

    def _refresh(self, entry: Refreshed) -> Refresh:
        pods = {} if entry.whole else dict(self._pods)
        for key in entry.gone:
            pods.pop(key, None)
        pods.update((pod.key, pod) for part in entry.came for pod in _pods.decode(part))
        self._pods = pods
        return Refresh(
            time=entry.time,
            usage_end=entry.usage_end,
            model_version=entry.model_version,
            nodes=entry.nodes,
            allocatable=_unpatch(None, entry.allocatable),
            forecast=_unpatch(None, entry.forecast),
            expected=_unpatch(None, entry.expected),
            pods=pods,
            advertise_share=self._share,
            usage=None if entry.usage is None else _unpatch(None, entry.usage),
        )

    def _decision(self, entry: Decided) -> Recorded:
        self._fields.update(entry.scalars)
        for name, patch in entry.arrays.items():
            self._fields[name] = _unpatch(self._fields.get(name), patch)
        if entry.named or entry.dropped:
            index = {n: row for n, row in self._index.items() if n not in set(entry.dropped)}
            self._index = NodeIndex(index | entry.named)
        self._policy = entry.policy or self._policy
        unknown: dict[str, Any] = {
            name: np.full(len(self._fields["allocatable"]), np.nan) for name in NOT_KEPT
        }
        known = set(Snapshot.__struct_fields__)
        kept: dict[str, Any] = {
            name: _by_node(name, value) for name, value in self._fields.items() if name in known
        }
        return Recorded(
            time=entry.time,
            uid=entry.uid,
            snapshot=Snapshot(index=self._index, **unknown, **kept),
            rows=np.cumsum(_unpacked(entry.rows)),
            ask=entry.ask,
            policy=self._policy,
            candidates=entry.candidates,
            habit=Habit(
                None if entry.profile is None else _unpatch(None, entry.profile), entry.home
            ),
            alone=None
            if entry.passed_over is None
            else Alone(_unpacked(entry.passed_over), _unpacked(entry.replicas)),
        )


def frame(entries: Sequence[Entry]) -> bytes:
    """The bytes of a frame."""
    body = zlib.compress(_encoder.encode(entries), 1)
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def segments(folder: Path) -> list[Path]:
    """The segments of a recording, the oldest first."""
    return sorted(folder.glob("[0-9]" * 20 + SEGMENT))


def began(segment: Path) -> float:
    """When a segment begins, seconds since the epoch."""
    return int(segment.name.removesuffix(SEGMENT)) / 1e6


def read_frames(file: BinaryIO) -> Iterator[list[Entry]]:
    """The frames from the file's position on, up to a half-written or damaged one.

    The position then is that frame's begin, so that reading may go on once it is whole.
    """
    while True:
        start = file.tell()
        head = file.read(_HEAD.size)
        length, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (_MAX_FRAME + 1, 0)
        body = file.read(length) if length <= _MAX_FRAME else b""
        if len(body) != length or zlib.crc32(body) != crc:
            file.seek(start)
            return
        yield _decoder.decode(zlib.decompress(body))


def _packed(rows: Ints) -> bytes:
    return rows.astype(np.int32).tobytes()


def _unpacked(rows: bytes) -> Ints:
    return np.frombuffer(rows, np.int32).astype(np.int64)


def _by_node(name: str, value: NDArray[Any]) -> NDArray[Any]:
    """A snapshot's array with nodes as rows, or back: what changes is nodes."""
    return value.T if name == "profile" else value


def _patch(name: str, last: Any, value: NDArray[Any]) -> Patch | None:  # noqa: ANN401 - any value
    value = _by_node(name, value)
    last = _by_node(name, last) if isinstance(last, np.ndarray) else last
    same = isinstance(last, np.ndarray) and last.dtype == value.dtype and last.shape == value.shape
    if not same or value.ndim == 0:
        return _whole(value)
    # NaN differs from itself, and writing it again is harmless.
    changed = np.flatnonzero((value != last).reshape(len(value), -1).any(axis=1))
    if len(changed) == 0:
        return None
    if len(changed) * 2 > len(value):
        return _whole(value)
    rows = changed.astype(np.int32).tobytes()
    return Patch(value.dtype.str, value[changed].shape, value[changed].tobytes(), rows)


def _whole(value: NDArray[Any]) -> Patch:
    return Patch(value.dtype.str, value.shape, value.tobytes())


def _unpatch(last: NDArray[Any] | None, patch: Patch) -> NDArray[Any]:
    values = np.frombuffer(patch.values, patch.dtype).reshape(patch.shape)
    if patch.rows is None or last is None:
        return values
    new = last.copy()
    new[np.frombuffer(patch.rows, np.int32)] = values
    return new
