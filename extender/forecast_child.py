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

import structlog
import uvloop

from extender.forecast_channel import (
    Array,
    Begin,
    Channel,
    ChannelClosedError,
    Failed,
    Follow,
    Install,
    Predict,
    Question,
    ReadUsage,
    questions,
    send_outlook,
)
from extender.forecasting import ThreadForecasting, Usage
from extender.lag import NICENESS
from extender.outlook import Outlook
from extender.telemetry import configure_logs
from models.artifact import unpack_model
from models.prometheus import PrometheusSource

log = structlog.get_logger()


def main() -> None:
    """Answer until the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal, or of whoever ends all at once
        signal.signal(number, signal.SIG_IGN)  # the server decides when to end
    os.nice(NICENESS)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), questions)
    begin, _ = channel.receive()
    assert isinstance(begin, Begin)  # noqa: S101 - both ends are of one version
    configure_logs(begin.log_level)
    uvloop.run(_answer(channel, begin))


async def _answer(channel: Channel[Question], begin: Begin) -> None:
    forecasting = ThreadForecasting(PrometheusSource(begin.prometheus), begin.prometheus)
    asked: asyncio.Queue[tuple[Question, list[Array]]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def listen() -> None:
        try:
            while True:
                loop.call_soon_threadsafe(asked.put_nowait, channel.receive())
        except ChannelClosedError:
            os._exit(0)  # nobody waits for what is under way, however long it would take

    threading.Thread(target=listen, name="listen", daemon=True).start()
    while True:
        question, arrays = await asked.get()
        if isinstance(question, Follow):
            await forecasting.follow(iter(question.changes))
            continue
        try:
            answer = await _answer_to(question, arrays, forecasting)
        except Exception as e:
            log.exception("a question could not be answered", question=type(question).__name__)
            answer = Failed(f"{type(e).__name__}: {e}")
        if answer is None or isinstance(answer, Outlook):
            send_outlook(channel, answer)
        else:
            channel.send(answer)


async def _answer_to(
    question: Question, arrays: list[Array], forecasting: ThreadForecasting
) -> Usage | Failed | Outlook | None:
    match question:
        case ReadUsage(now):
            return await forecasting.read_usage(now)
        case Install(version, files, nodes):
            model = None if files is None else unpack_model(files, version)
            return await forecasting.install(model, nodes, *arrays)
        case Predict(nodes):
            return await forecasting.forecast(nodes, *arrays)
        case _:
            return Failed(f"{type(question).__name__} is no question")


if __name__ == "__main__":
    main()
