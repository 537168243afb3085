"""The process that makes forecasts for a server: python -m extender.forecast_child SOCKET.

It ends when its server does: a connection that closes is the last thing it hears.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import structlog
import uvloop

from extender.forecast_channel import (
    Array,
    Asked,
    Begin,
    Channel,
    ChannelClosedError,
    Failed,
    Follow,
    Install,
    PackedModel,
    Predict,
    Question,
    ReadUsage,
    Works,
    questions,
    send_outlook,
)
from extender.forecasting import ThreadForecasting, Usage
from extender.lightgbm_alone import import_lightgbm_alone
from extender.outlook import Outlook
from extender.telemetry import configure_logs
from models.model import Model
from models.prometheus import PrometheusSource

_NICENESS = 10
"""By how much it is nicer than the server. It keeps nobody from an interpreter, so unlike a thread
of the server it may wait for a core."""

_SAYS_OFTEN = 4
"""How often it says that it works in the time in which it has to say anything."""

log = structlog.get_logger()


def main() -> None:
    """Answer until the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal, or of whoever ends all at once
        signal.signal(number, signal.SIG_IGN)  # the server decides when to end
    # Beside the server itself: the thread of it that started this process is nicer already.
    servers = os.getpriority(os.PRIO_PROCESS, os.getppid())
    os.setpriority(os.PRIO_PROCESS, 0, servers + _NICENESS)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), questions)
    begin, _ = channel.receive()
    assert isinstance(begin, Begin)  # noqa: S101 - both ends are of one version
    configure_logs(begin.log_level)
    import_lightgbm_alone()
    uvloop.run(_answer(channel, begin))


async def _answer(channel: Channel[Question], begin: Begin) -> None:
    forecasting = ThreadForecasting(PrometheusSource(begin.prometheus), begin.prometheus)
    asked: asyncio.Queue[tuple[Question, list[Array]]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        status = 1
        try:
            while True:
                loop.call_soon_threadsafe(asked.put_nowait, channel.receive())
        except ChannelClosedError:
            status = 0
        finally:
            os._exit(status)  # nobody waits for what is under way, however long it would take

    threading.Thread(target=listen, name="listen", daemon=True).start()
    await forecasting.install(_unpacked(begin.model), (), np.zeros(0))
    while True:
        question, arrays = await asked.get()
        if isinstance(question, Follow):
            await forecasting.follow(iter(question.changes))
            continue
        assert not isinstance(question, Begin)  # noqa: S101 - it comes first and once
        try:
            async with _working(channel, begin.silent_seconds / _SAYS_OFTEN):
                answer = await _answer_to(question, arrays, forecasting)
        except Exception as e:
            log.exception("a question could not be answered", question=type(question).__name__)
            answer = Failed(f"{type(e).__name__}: {e}")
        if answer is None or isinstance(answer, Outlook):
            send_outlook(channel, answer)
        else:
            channel.send(answer)


@asynccontextmanager
async def _working(channel: Channel[Question], seconds: float) -> AsyncIterator[None]:
    """Say so every so many seconds. The work itself is done in threads."""

    async def say() -> None:
        while True:
            await asyncio.sleep(seconds)
            channel.send(Works())

    saying = asyncio.create_task(say())
    try:
        yield
    finally:
        saying.cancel()


async def _answer_to(
    question: Asked, arrays: list[Array], forecasting: ThreadForecasting
) -> Usage | Failed | Outlook | None:
    match question:
        case ReadUsage(now):
            return await forecasting.read_usage(now)
        case Install(model, nodes):
            return await forecasting.install(_unpacked(model), nodes, *arrays)
        case Predict(nodes):
            return await forecasting.forecast(nodes, *arrays)


def _unpacked(model: PackedModel | None) -> Model | None:
    from models.artifact import unpack_model  # which imports LightGBM

    return None if model is None else unpack_model(model.files, model.version)


if __name__ == "__main__":
    main()
