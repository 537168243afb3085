"""What is said between the server and the process that makes its forecasts, and how it is sent.

A message is a length, MessagePack, and its arrays as they lie in memory. Names come in pieces: in
one go, those of all pods would keep the interpreter from the event loop for tens of milliseconds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from extender.forecasting import ForecastingError, Usage
from extender.outlook import CountedPod, Outlook
from models.habits import Habits, Rhythm
from models.rolling import Forecast
from models.usage_source import PrometheusSettings

_PIECE = 256
"""Pods or names in a message: a fifth of a millisecond."""

_LENGTH = struct.Struct("<I")

Array = NDArray[Any]
T = TypeVar("T")
M = TypeVar("M")


class PackedModel(msgspec.Struct, frozen=True):
    """A model's version, and its files as `models.artifact.pack_model` makes them."""

    version: str
    files: dict[str, bytes]


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The first message, which is not answered.

    Where usage comes from, what is logged, the model of the process before, if there was one, and
    after how many seconds of silence the server would take the process for dead.
    """

    prometheus: PrometheusSettings
    log_level: str
    model: PackedModel | None
    silent_seconds: float


class Follow(msgspec.Struct, frozen=True, tag=True):
    """Changes of some pods, see `extender.outlook.PodChanges`. It is not answered."""

    changes: list[tuple[str, CountedPod | None]]


class ReadUsage(msgspec.Struct, frozen=True, tag=True):
    """Answered with `Usage`; ``now``: seconds since the epoch."""

    now: float


class Install(msgspec.Struct, frozen=True, tag=True):
    """Another model, or none. Arrays: allocatable. Answered with `Made` or `NothingMade`."""

    model: PackedModel | None
    nodes: Sequence[str]


class Predict(msgspec.Struct, frozen=True, tag=True):
    """Forecast for these nodes. Arrays: allocatable. Answered with `Made` or `NothingMade`."""

    nodes: Sequence[str]


class Workloads(msgspec.Struct, frozen=True, tag=True):
    """Some names of `models.habits.Habits.index`, in the order of rows; `Made` follows."""

    names: Sequence[str]


class Made(msgspec.Struct, frozen=True, tag=True):
    """An outlook. Arrays: those of `Outlook`, see `send_outlook`."""

    usage_end: int


class NothingMade(msgspec.Struct, frozen=True, tag=True):
    """There is no model, or no usage."""


class Works(msgspec.Struct, frozen=True, tag=True):
    """The answer takes a while. Said now and then before it."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The question could not be answered."""

    why: str


Asked = ReadUsage | Install | Predict
Question = Begin | Follow | Asked
Answer = Usage | Workloads | Made | NothingMade | Works | Failed
questions: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class ChannelClosedError(Exception):
    """The other process is gone."""


class _Layout(msgspec.Struct, array_like=True):
    message: msgspec.Raw
    arrays: list[tuple[str, tuple[int, ...]]]  # dtype and shape


class Channel(Generic[M]):
    """One end of a pair of sockets. A message is sent, or received, by one thread at a time."""

    def __init__(self, end: socket.socket, messages: msgspec.msgpack.Decoder[M]) -> None:
        """``messages``: reads those that come."""
        self._socket = end
        self._messages = messages
        self._encoder = msgspec.msgpack.Encoder()
        self._layouts = msgspec.msgpack.Decoder(_Layout)

    def send(self, message: object, *arrays: Array) -> None:
        """Send a message. Raises ChannelClosedError."""
        layout = _Layout(
            msgspec.Raw(self._encoder.encode(message)),
            [(array.dtype.str, array.shape) for array in arrays],
        )
        head = self._encoder.encode(layout)
        try:
            self._socket.sendall(_LENGTH.pack(len(head)) + head)
            for array in arrays:
                self._socket.sendall(_bytes_of(np.ascontiguousarray(array)))
        except OSError as e:
            raise ChannelClosedError from e

    def receive(self) -> tuple[M, list[Array]]:
        """Wait for a message. Raises ChannelClosedError."""
        (length,) = _LENGTH.unpack(self._read(np.empty(_LENGTH.size, np.uint8)).data)
        layout = self._layouts.decode(self._read(np.empty(length, np.uint8)).data)
        arrays = [self._read(np.empty(shape, dtype)) for dtype, shape in layout.arrays]
        return self._messages.decode(layout.message), arrays

    def close(self) -> None:
        """End the connection, and whatever waits on it at either end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, into: Array) -> Array:
        room = _bytes_of(into)
        while len(room):
            try:
                read = self._socket.recv_into(room)
            except OSError as e:
                raise ChannelClosedError from e
            if read == 0:
                raise ChannelClosedError
            room = room[read:]
        return into


def pieces(items: Iterable[T]) -> Iterator[list[T]]:
    """The items, as many at a time as one message shall hold."""
    rest = iter(items)
    while piece := list(islice(rest, _PIECE)):
        yield piece


def send_outlook(channel: Channel[Question], outlook: Outlook | None) -> None:
    """Send what was forecast. Raises ChannelClosedError."""
    if outlook is None:
        channel.send(NothingMade())
        return
    rhythm, habits = outlook.rhythm, outlook.rhythm.habits
    for names in pieces(habits.index):
        channel.send(Workloads(names))
    forecast = (outlook.forecast.forecast, outlook.forecast.expected, outlook.newest)
    channel.send(
        Made(outlook.usage_end), *forecast, rhythm.usage, rhythm.shape, habits.need, habits.profile
    )


def receive_outlook(channel: Channel[Answer]) -> Outlook | None:
    """What `send_outlook` sent. Raises ChannelClosedError, ForecastingError where it failed."""
    index: dict[str, int] = {}
    while True:
        message, arrays = receive_answer(channel)
        match message:
            case Workloads(names):
                index.update((name, row) for row, name in enumerate(names, len(index)))
            case Made(usage_end):
                forecast, expected, newest, usage, shape, need, profile = arrays
                rhythm = Rhythm(usage, shape, Habits(index, need, profile))
                return Outlook(usage_end, Forecast(forecast, expected), newest, rhythm)
            case NothingMade():
                return None
            case _:
                raise TypeError(f"{type(message).__name__} does not answer what was asked")


def receive_answer(channel: Channel[Answer]) -> tuple[Answer, list[Array]]:
    """The next message that says more than that there is work.

    Raises ChannelClosedError, and ForecastingError where it says so.
    """
    message, arrays = channel.receive()
    while isinstance(message, Works):
        message, arrays = channel.receive()
    if isinstance(message, Failed):
        raise ForecastingError(message.why)
    return message, arrays


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
