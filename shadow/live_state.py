"""What the live shadow must not forget: one small file, replaced as a whole, and forecasts beside.

Everything that is counted is counted in this state only, together with how far the log was read.
A process that is killed goes on from the last state that was saved and counts nothing twice.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import TypeVar

import msgspec

from extender.recording import OnlinePod
from models.arrays import Packed
from models.errors import ArchimedesError
from models.policy import Policy
from models.rolling import Progress
from shadow.tail import Position

_FORECASTS, _PROGRESS = ".forecasts", ".progress"


class Side(msgspec.Struct):
    """Sums of the champion's or the challenger's outcomes.

    Fields, with units:
        judged: (node, refresh, horizon) whose real peak is known; violated: those above the
            forecast; severity: summed share of the node's CPU by which they were above.
        offered, excess: cores summed over what was judged: reclaimable, and reserved in vain.
        regret: cores summed over decisions whose outcome is known.
    """

    judged: int = 0
    violated: int = 0
    severity: float = 0.0
    offered: float = 0.0
    excess: float = 0.0
    regret: float = 0.0


class Tally(msgspec.Struct):
    """Sums about one challenger version.

    decisions: scored with the challenger; overlap: summed share of common candidates; unscored:
    those without a recording or forecast. bound: offline pods bound after such a decision; agreed:
    to the challenger's choice. joined: those whose outcome is known; unknown: those whose is not.
    """

    decisions: int = 0
    unscored: int = 0
    overlap: float = 0.0
    bound: int = 0
    agreed: int = 0
    joined: int = 0
    unknown: int = 0
    champion: Side = msgspec.field(default_factory=Side)
    challenger: Side = msgspec.field(default_factory=Side)


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """A scored decision: the candidates of either side, and what is known of them.

    room: cores of each that are left for a peak (allocatable x ceiling - reserve - promises).
    """

    time: float
    version: str
    refresh: float
    hours: int
    nodes: tuple[str, ...]
    room: tuple[float, ...]
    chosen: str
    bound: str = ""


class Pending(msgspec.Struct, array_like=True):
    """A refresh that is not forgotten yet; waits: hours of the horizons still to be judged."""

    time: float
    version: str
    waits: tuple[int, ...]


class Point(msgspec.Struct, frozen=True, array_like=True):
    """Figures for the registry that it has not got yet."""

    version: str
    time: float
    figures: dict[str, float]


class LiveState(msgspec.Struct, kw_only=True):
    """All of it; choices await their bind by UID, bound ones their outcome.

    read, refreshed: times of the newest event and of the newest refresh. learned: the version on
    trial, and the refresh up to which its progress is kept. logged: whose figures went to the
    registry last, and when.
    """

    position: Position = Position()
    read: float = 0.0
    refreshed: float = 0.0
    learned: tuple[str, float] = ("", 0.0)
    tallies: dict[str, Tally] = {}
    choices: dict[str, Choice] = {}
    bound: list[Choice] = []
    pending: list[Pending] = []
    unlogged: list[Point] = []
    logged: tuple[str, float] = ("", 0.0)


class Forecasts(msgspec.Struct, frozen=True, array_like=True):
    """Both sides' forecasts of one refresh, [N, H] cores, and the pods that they were made for.

    policy: the challenger's.
    """

    nodes: tuple[str, ...]
    allocatable: Packed
    champion: Packed
    challenger: Packed
    policy: Policy
    pods: tuple[OnlinePod, ...]


_Content = TypeVar("_Content", Forecasts, Progress)


class StateFile:
    """The state on disk; forecasts and progress lie in the folder ``FILE.pending``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.with_name(path.name + ".pending")

    def load(self) -> LiveState:
        """The last saved state, or a new one.

        Raises:
            ArchimedesError: the file cannot be read, or is no state.
        """
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=LiveState)
        except FileNotFoundError:
            return LiveState()
        except (OSError, msgspec.DecodeError) as e:
            raise ArchimedesError(
                f"state file {self._path} cannot be used: {e}; name another file, or remove it to "
                "begin anew"
            ) from e

    def save(self, state: LiveState) -> None:
        """Replace the state, then forget what nothing waits for. Raises ArchimedesError."""
        _replace(self._path, msgspec.json.encode(state))
        kept = {self._at(pending.time, _FORECASTS) for pending in state.pending}
        kept.add(self._at(state.learned[1], _PROGRESS))
        for file in self._folder.glob("*"):
            if file not in kept:
                file.unlink()

    def keep(self, time: float, forecasts: Forecasts) -> None:
        """Write a refresh's forecasts, before a state refers to them. Raises ArchimedesError."""
        self._write(self._at(time, _FORECASTS), forecasts)

    def forecasts(self, time: float) -> Forecasts:
        """The forecasts of a refresh that the state refers to. Raises ArchimedesError."""
        return self._read(self._at(time, _FORECASTS), Forecasts)

    def keep_progress(self, time: float, progress: Progress) -> None:
        """Write what was learned up to a refresh, before a state refers to it.

        Raises:
            ArchimedesError: it cannot be written.
        """
        self._write(self._at(time, _PROGRESS), progress)

    def progress(self, time: float) -> Progress:
        """What was learned up to a refresh that the state refers to. Raises ArchimedesError."""
        return self._read(self._at(time, _PROGRESS), Progress)

    def _at(self, time: float, suffix: str) -> Path:
        return self._folder / f"{int(time * 1e6):020d}{suffix}"

    def _write(self, path: Path, content: msgspec.Struct) -> None:
        _replace(path, zlib.compress(msgspec.msgpack.encode(content), 1))

    def _read(self, path: Path, kind: type[_Content]) -> _Content:
        try:
            return msgspec.msgpack.decode(zlib.decompress(path.read_bytes()), type=kind)
        except (OSError, zlib.error, msgspec.DecodeError) as e:
            raise ArchimedesError(
                f"{path} belongs to state file {self._path} and cannot be read: {e}; remove both "
                "to begin anew"
            ) from e


def _replace(path: Path, content: bytes) -> None:
    """Write all of a file or nothing of it, also where power fails."""
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as e:
        raise ArchimedesError(
            f"{path} cannot be written: {e.strerror}; name another --state"
        ) from e
