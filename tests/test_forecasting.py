"""Forecasts from a process of its own: what threads here would make, and again after any death."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from extender import forecast_process
from extender.forecast_channel import (
    Channel,
    ChannelClosedError,
    answers,
    pieces,
    questions,
    receive_outlook,
    send_outlook,
)
from extender.forecast_process import ProcessForecasting
from extender.forecasting import (
    CountedPods,
    Forecasting,
    ForecastingError,
    ThreadForecasting,
    Usage,
)
from extender.lag import background_threads
from extender.outlook import CountedPod, Outlook
from extender.recording import Refresh
from extender.refresh import Refresher
from models.classical import CLASSICAL
from models.habits import Habits, Rhythm
from models.model import Model
from models.prometheus import PrometheusSource
from models.rolling import Forecast
from models.shipped import shipped
from models.usage_source import PrometheusSettings, UsageBlock
from tests.controlplane.backfill import cumulated, write_openmetrics
from tests.controlplane.process import wait_until
from tests.controlplane.prometheus import Prometheus
from tests.extender_world import PLAIN, World, as_pod, pod_json
from tests.learned import small_model

NODES = ("n1", "n2", "n3")
PODS = {f"default/p{number}": NODES[number % 3] for number in range(9)}
ALLOCATABLE = np.array([16.0, 16.0, 32.0])
HOURS = 30
MINUTE = 60.0
NOW = time.time() // 300 * 300


@pytest.fixture(name="usage", scope="module")
def usage_of_nine_pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusSettings]:
    """A real server with a day and a quarter of usage, a wave for each pod."""
    folder = tmp_path_factory.mktemp("usage")
    times = [NOW - HOURS * 3600 + MINUTE * minute for minute in range(HOURS * 60 + 1)]
    history, nodes = {}, {}
    for at, (key, node) in enumerate(PODS.items()):
        namespace, _, name = key.partition("/")
        wave = [1.0 + at / 8 + math.sin(t / 5000 + at) / 2 for t in times]
        history[namespace, name] = cumulated(times, wave)
        nodes[namespace, name] = node
    past = write_openmetrics(folder / "past", history, nodes)
    with Prometheus(folder / "prometheus", backfill=past) as server:
        yield PrometheusSettings(url=server.url, history_days=2)


@pytest.fixture(name="process")
async def in_a_process(usage: PrometheusSettings) -> AsyncIterator[ProcessForecasting]:
    """Forecasts from a child."""
    process = ProcessForecasting(usage, "error")
    yield process
    await process.close()


@asynccontextmanager
async def silent_prometheus() -> AsyncIterator[tuple[PrometheusSettings, asyncio.Event]]:
    """A server that never answers; the event tells that it was asked."""
    asked, over = asyncio.Event(), asyncio.Event()

    async def never(_: web.Request) -> web.Response:
        asked.set()
        await over.wait()
        raise web.HTTPServiceUnavailable

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", never)
    async with TestServer(app) as server:
        yield PrometheusSettings(url=str(server.make_url("/")), timeout_seconds=600), asked
        over.set()


def pod(key: str, node: str, **fields: object) -> CountedPod:
    """An online pod of one core that has run for long."""
    found = CountedPod(key, node, f"default/Deployment/{key[-1]}", False, 1.0, 0.0)
    return msgspec.structs.replace(found, **fields)


def all_pods() -> Iterator[tuple[str, CountedPod | None]]:
    """Those with usage, one that waits, one whose workload is known, and an offline one."""
    yield from ((key, pod(key, node)) for key, node in PODS.items())
    yield "waits", pod("default/waits", "")
    yield "new", pod("default/new", "n1", workload="default/Deployment/1")
    yield "offline", pod("default/offline", "n2", offline=True, request=0.0)


def champion() -> Model:
    """Forecasts the highest of a day."""
    return shipped(CLASSICAL["trailing-max-24h"], PLAIN)


async def begun(forecasting: Forecasting, model: Model) -> Outlook:
    """Its first outlook."""
    await forecasting.begin()
    await forecasting.follow(all_pods())
    assert not (await forecasting.read_usage(NOW)).error
    return made(await forecasting.install(model, NODES, ALLOCATABLE))


def made(outlook: Outlook | None) -> Outlook:
    assert outlook is not None
    return outlook


def assert_same(found: Outlook, expected: Outlook) -> None:
    """Bit by bit."""
    assert found.usage_end == expected.usage_end
    assert found.rhythm.habits.index == expected.rhythm.habits.index
    for one, other in zip(parts(found), parts(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def parts(outlook: Outlook) -> tuple[NDArray[Any], ...]:
    forecast, rhythm = outlook.forecast, outlook.rhythm
    of_nodes = (forecast.forecast, forecast.expected, outlook.newest, rhythm.usage, rhythm.shape)
    return (*of_nodes, rhythm.habits.need, rhythm.habits.profile)


@pytest.mark.parametrize("model", [champion(), small_model()], ids=["classical", "learned"])
async def test_a_process_makes_what_threads_make(
    usage: PrometheusSettings,
    process: ProcessForecasting,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("extender.forecast_channel._PIECE", 4)  # the child's is its own
    threads = ThreadForecasting(PrometheusSource(usage), usage)
    assert await process.begin()
    assert not await threads.begin()
    both: tuple[Forecasting, Forecasting] = (process, threads)
    for each in both:
        assert await each.forecast(NODES, ALLOCATABLE) is None  # no model
        assert await each.install(model, NODES, ALLOCATABLE) is None  # no usage
    found, expected = [await begun(each, model) for each in both]
    assert np.isfinite(expected.forecast.forecast).all()
    assert_same(found, expected)
    moved = {"waits": pod("default/waits", "n3"), "default/p0": None}
    for later in (NOW + 300, NOW + 600):
        for each in both:
            await each.follow(iter(moved.items()))
        usages = [await each.read_usage(later) for each in both]
        assert usages[0] == usages[1]
        assert usages[0].pods == len(PODS) + 1
        found, expected = [made(await each.forecast(NODES, ALLOCATABLE)) for each in both]
        assert_same(found, expected)
    for each in both:
        assert await each.install(None, NODES, ALLOCATABLE) is None
        assert await each.forecast(NODES, ALLOCATABLE) is None
    await threads.close()


async def test_a_killed_process_fails_one_question_and_another_takes_over(
    process: ProcessForecasting,
) -> None:
    before = await begun(process, champion())
    first = process.pid
    kill(process)
    with pytest.raises(ForecastingError, match="status -9"):
        await process.forecast(NODES, ALLOCATABLE)
    assert await process.begin()
    assert await process.begin(), "nobody has told it of pods yet"
    assert process.pid not in (None, first)
    assert await process.forecast(NODES, ALLOCATABLE) is None
    await process.follow(all_pods())
    assert not await process.begin()
    await process.read_usage(NOW)
    assert_same(made(await process.forecast(NODES, ALLOCATABLE)), before)


async def test_refreshes_recover_from_a_killed_process(process: ProcessForecasting) -> None:
    world = World(NODES)
    world.now = NOW
    world.sync()
    for key, node in PODS.items():
        json = pod_json(key.partition("/")[2], cpu="1", node=node, phase="Running")
        json["status"]["startTime"] = "2023-11-13T00:00:00Z"
        world.cluster.put_pod(as_pod(json))
    recorded: list[Refresh] = []
    recorder = Mock(put=lambda made: recorded.append(made()))
    about = (world.settings, lambda: world.now, world.server.telemetry, recorder)
    refresher = Refresher(world.state, process, *about)
    await refresher.install(champion(), "test")
    await refresher.refresh()
    snapshot = world.state.snapshot(world.now, keep=True)
    assert np.isfinite(snapshot.forecast).all()
    await refresher.refresh()
    world.cluster.delete_pod("default", "p0")
    kill(process)
    with pytest.raises(ForecastingError):
        await refresher.refresh()
    other = shipped(CLASSICAL["max-7d"], PLAIN)
    await refresher.install(other, "test")  # in a new process, which has read no usage yet
    again = world.state.snapshot(world.now, keep=True)
    np.testing.assert_array_equal(again.forecast, snapshot.forecast)  # what was in force stays
    assert world.state.model_version == "trailing-max-24h"
    assert reported(world) == ["trailing-max-24h"]
    await refresher.refresh()
    found = world.state.snapshot(world.now)
    assert set(recorded[-1].pods) == PODS.keys() - {"default/p0"}
    lower = [
        bool((found.forecast[row] < snapshot.forecast[row]).all()) for row in found.rows(NODES)
    ]
    assert lower == [True, False, False]  # a pod of the first one is gone
    assert world.state.model_version == "max-7d"
    assert reported(world) == ["max-7d"]
    await refresher.install(None, "test")
    assert world.state.model_version == "none"
    assert np.isinf(world.state.snapshot(world.now).usage_age).all()  # nothing is promised


async def test_pods_that_change_find_a_dead_process_before_the_next_refresh_does(
    process: ProcessForecasting,
) -> None:
    world = World(NODES)
    world.now = NOW
    world.sync()
    refresher = Refresher(
        world.state, process, world.settings, lambda: world.now, world.server.telemetry
    )
    await refresher.follow()
    nobody = process.pid
    assert nobody is None, "there is nothing to be told of"
    for key, node in PODS.items():
        world.cluster.put_pod(as_pod(pod_json(key.partition("/")[2], cpu="1", node=node)))
    await refresher.follow()
    first = process.pid
    await refresher.follow()
    kill(process)
    # What is sent to it before it is dead is lost without an error.
    await asyncio.to_thread(wait_until, lambda: not alive(first), 10, "it is dead")
    world.cluster.put_pod(as_pod(pod_json("late", cpu="1", node="n1")))
    with pytest.raises(ForecastingError, match="status -9"):
        await refresher.follow()
    world.cluster.delete_pod("default", "p0")
    await refresher.follow()
    assert process.pid not in (None, first)
    assert (await process.read_usage(NOW)).pods == len(PODS)  # one more, and one less


def reported(world: World) -> list[str]:
    """The versions that serve, by the metric."""
    (metric,) = world.server.telemetry.model.collect()
    return [sample.labels["version"] for sample in metric.samples if sample.value]


async def test_a_death_in_the_middle_of_a_question_ends_it() -> None:
    async with unanswered() as (process, answer):
        assert not answer.done()
        kill(process)
        with pytest.raises(ForecastingError, match="status -9"):
            await answer


async def test_closing_ends_a_question_that_is_under_way() -> None:
    async with unanswered() as (process, answer):
        pid = process.pid
        await process.close()
        assert not alive(pid)
        with pytest.raises(ForecastingError, match="status 0"):
            await answer
        with pytest.raises(ForecastingError, match="no process"):
            await process.forecast(NODES, ALLOCATABLE)


@asynccontextmanager
async def unanswered() -> AsyncIterator[tuple[ProcessForecasting, asyncio.Task[Usage]]]:
    """A process that has been asked to read usage, and whose Prometheus never answers."""
    async with silent_prometheus() as (settings, asked):
        process = ProcessForecasting(settings, "error")
        await process.begin()
        await process.follow(all_pods())
        answer = asyncio.create_task(process.read_usage(NOW))
        await asked.wait()
        try:
            yield process, answer
        finally:
            await process.close()


async def test_a_process_that_ignores_its_end_is_killed(process: ProcessForecasting) -> None:
    await process.begin()
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await process.close()
    assert not alive(pid)


async def test_signals_to_all_leave_it_to_the_server(process: ProcessForecasting) -> None:
    await begun(process, champion())
    before = made(await process.forecast(NODES, ALLOCATABLE))
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert_same(made(await process.forecast(NODES, ALLOCATABLE)), before)
    assert process.pid == pid


async def test_a_model_that_fails_leaves_the_one_before(
    process: ProcessForecasting, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await begun(process, champion())
    before = made(await process.forecast(NODES, ALLOCATABLE))  # workloads are known now
    pid = process.pid
    with monkeypatch.context() as patch:
        patch.setattr(forecast_process, "pack_model", lambda _: {"manifest.json": b"{}"})
        with pytest.raises(ForecastingError, match=r"its manifest\.json is damaged"):
            await process.install(small_model(), NODES, ALLOCATABLE)
    assert process.pid == pid
    assert_same(made(await process.forecast(NODES, ALLOCATABLE)), before)
    kill(process)
    with pytest.raises(ForecastingError):
        await process.forecast(NODES, ALLOCATABLE)
    assert_same(await begun_again(process), first)


async def begun_again(process: ProcessForecasting) -> Outlook:
    """The outlook of a new child, with the model that it was given by itself."""
    await process.begin()
    await process.follow(all_pods())
    await process.read_usage(NOW)
    return made(await process.forecast(NODES, ALLOCATABLE))


async def test_a_process_that_says_nothing_for_long_is_replaced(
    process: ProcessForecasting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast_process, "_SILENT_SECONDS", 5.0)
    before = await begun(process, champion())
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(ForecastingError, match=r"did not answer in time .*status -9"):
        await process.forecast(NODES, ALLOCATABLE)
    assert not alive(pid)
    assert_same(await begun_again(process), before)


async def test_a_process_that_works_for_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast_process, "_SILENT_SECONDS", 6.0)
    monkeypatch.setattr(forecast_process, "_ANSWER_SECONDS", 25.0)
    async with unanswered() as (process, answer):
        pid = process.pid
        done, _ = await asyncio.wait([answer], timeout=15.0)
        assert not done, "it is silent for no longer than two seconds"
        with pytest.raises(ForecastingError, match="did not answer in time"):
            await answer  # but nobody waits for ever
        assert not alive(pid)


async def test_a_past_that_takes_long_to_read_is_read_in_several_refreshes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    class Slow:
        async def read(self, start: int, windows: int) -> UsageBlock:
            asked.append(start)
            return UsageBlock(start, ("default/a",), np.ones((1, windows), np.float32))

        async def close(self) -> None:
            pass

    forecasting = ThreadForecasting(Slow(), PrometheusSettings(history_days=7))
    await forecasting.follow(all_pods())
    loop = asyncio.get_running_loop()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: 100.0 * len(asked))  # seconds that a query takes
        times, queries = set(), []
        for _ in range(4):
            times.add((await forecasting.read_usage(NOW)).time)
            queries.append(len(asked))
    assert queries == [3, 6, 7, 7]  # one for each day, of 100 s: no fourth begins after 240 s
    assert asked == sorted(asked, reverse=True)
    assert times == {asked[0] + 86_400}


async def test_a_process_that_cannot_begin_is_an_error(
    process: ProcessForecasting, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await begun(process, champion())
    kill(process)
    with pytest.raises(ForecastingError):
        await process.read_usage(NOW)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere")
        with pytest.raises(ForecastingError, match=r"could begin: .*/nowhere"):
            await process.begin()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(ForecastingError, match="status 1"):
            await asked(process)
    assert_same(await begun_again(process), before)


async def asked(process: ProcessForecasting) -> None:
    """Begin and ask, as a process may end before or after it is first spoken to."""
    await process.begin()
    await process.read_usage(NOW)


async def test_what_cannot_be_told_in_full_is_told_to_another_process(
    process: ProcessForecasting,
) -> None:
    def broken() -> Iterator[tuple[str, CountedPod | None]]:
        yield from all_pods()
        raise MemoryError

    await process.begin()
    await process.follow(all_pods())
    first = process.pid
    with pytest.raises(MemoryError):
        await process.follow(broken())
    assert not alive(first)
    assert await process.begin()


async def test_a_message_that_is_none_ends_the_process(process: ProcessForecasting) -> None:
    await process.begin()
    child = process._child
    assert child is not None
    child._channel.send("what is this?")
    with pytest.raises(ForecastingError, match="status 1"):
        await process.read_usage(NOW)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
async def test_it_leaves_the_cores_to_the_server(process: ProcessForecasting) -> None:
    asyncio.get_running_loop().set_default_executor(background_threads())
    await process.begin()
    await process.read_usage(NOW)
    assert process.pid is not None
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == min(own + 10, 19)


def test_a_process_ends_when_its_server_is_killed() -> None:
    code = """
import asyncio, sys
from extender.forecast_process import ProcessForecasting
from models.usage_source import PrometheusSettings

async def main():
    process = ProcessForecasting(PrometheusSettings(url="http://127.0.0.1:9"), "error")
    await process.begin()
    print(process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    assert alive(pid)
    server.kill()
    server.wait()
    server.stdout.close()
    wait_until(lambda: not alive(pid), 30, "the child ends")


def kill(process: ProcessForecasting) -> None:
    """As the kernel does when memory is short."""
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


def alive(pid: int | None) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# What lies on the channel


@st.composite
def some_arrays(draw: st.DrawFn) -> list[NDArray[Any]]:
    """Of the kinds that outlooks have, empty ones too."""
    kinds = st.sampled_from([np.float64, np.float32, np.int64, np.bool_])
    shapes = arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9)
    return draw(st.lists(kinds.flatmap(lambda kind: arrays.arrays(kind, shapes)), max_size=4))


@given(some_arrays(), st.text())
def test_messages_and_arrays_arrive_as_they_were(sent: list[NDArray[Any]], text: str) -> None:
    one, other = channels()

    def send() -> None:
        one.send(text, *sent)
        one.send("next")

    sender = threading.Thread(target=send)
    sender.start()
    message, found = other.receive()
    assert other.receive() == ("next", [])
    sender.join()
    assert message == text
    for array, expected in zip(found, sent, strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)
    one.close()
    other.close()


def test_arrays_that_are_no_rows_of_memory_arrive() -> None:
    one, other = channels()
    whole = np.arange(24.0).reshape(4, 6)
    one.send("turned", whole.T, whole[::2, ::3])
    _, found = other.receive()
    np.testing.assert_array_equal(found[0], whole.T)
    np.testing.assert_array_equal(found[1], whole[::2, ::3])
    one.close()
    with pytest.raises(ChannelClosedError):
        other.receive()
    with pytest.raises(ChannelClosedError):
        other.send("a" * 10**7)
    other.close()
    with pytest.raises(ChannelClosedError):
        other.receive()


def test_an_outlook_with_more_workloads_than_a_message_holds_arrives_as_it_was() -> None:
    rng, workloads = np.random.default_rng(1), 1000
    index = {f"default/Deployment/w{number}": number for number in range(workloads)}
    profile = rng.random((workloads, 24)).astype(np.float32)
    habits = Habits(index, rng.random(workloads), profile)
    rhythm = Rhythm(np.array([1.0, np.nan]), rng.random((2, 24)), habits)
    forecast = Forecast(rng.random((2, 5)), np.full((2, 5), np.nan))
    sent = Outlook(1_700_000_100, forecast, np.array([1_700_000_100.0, -np.inf]), rhythm)
    one, other = socket.socketpair()
    server, child = Channel(one, answers), Channel(other, questions)
    sender = threading.Thread(target=send_outlook, args=(child, sent))
    sender.start()
    found = receive_outlook(server)
    sender.join()
    assert_same(made(found), sent)
    server.close()
    child.close()


def channels() -> tuple[Channel[str], Channel[str]]:
    """Both ends."""
    one, other = socket.socketpair()
    decoder = msgspec.msgpack.Decoder(str)
    return Channel(one, decoder), Channel(other, decoder)


@given(st.integers(0, 2000))
def test_pieces_are_small_and_lose_nothing(count: int) -> None:
    found = list(pieces(range(count)))
    assert [item for piece in found for item in piece] == list(range(count))
    assert all(0 < len(piece) <= 256 for piece in found)


def test_the_table_of_pods_counts_keys_and_not_lives() -> None:
    table = CountedPods()
    online = pod("default/a", "n1")
    table.follow(iter({"1": online, "2": pod("default/a", "n2"), "3": pod("b", "")}.items()))
    assert set(table.observed) == {"default/a"}
    table.follow(iter([("1", None)]))
    assert set(table.observed) == {"default/a"}
    table.follow(iter([("2", None), ("unknown", None)]))
    assert set(table.observed) == set()
    assert [each.key for each in table.counting()] == ["b"]
    table.follow(iter([("4", pod("c", "n1", offline=True)), ("5", pod("d", "n1", request=0.0))]))
    table.follow(iter([("6", pod("e", "n1", offline=True, request=0.0))]))
    assert [each.key for each in table.counting()] == ["b", "c", "d"]
    assert set(table.observed) == {"d"}


def test_what_lightgbm_takes_along_stays_out_of_the_server() -> None:
    code = """
import json, sys
from extender.app import production_parts
from extender.settings import Settings
from models.errors import ArchimedesError

try:
    production_parts(Settings(kubeconfig="/nowhere"))
except ArchimedesError:
    pass
print(json.dumps(sorted({"lightgbm", "dask", "pandas", "pyarrow", "sklearn"} & set(sys.modules))))
import pandas, sklearn
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert msgspec.json.decode(done.stdout) == ["lightgbm"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process has loaded")
async def test_what_lightgbm_takes_along_stays_out_of_the_process(
    process: ProcessForecasting,
) -> None:
    await begun(process, small_model())
    libraries = loaded(process)
    assert "lightgbm" in libraries
    assert "pandas" not in libraries


def loaded(process: ProcessForecasting) -> str:
    """The files that it has in its memory."""
    return Path(f"/proc/{process.pid}/maps").read_text()
