"""Usage from Prometheus' answers, against an obvious reading of the same JSON."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from models import prometheus
from models.prometheus import PrometheusSource
from models.usage_source import PrometheusSettings, UsageBlock, UsageError

START = 1_700_000_100  # a multiple of 300
WINDOWS = 4
Values = Mapping[str, Sequence[tuple[int, str]]]


def answer(values: Values, *, compact: bool = True, **more: object) -> bytes:
    """A matrix as Prometheus writes it, or with spaces as another server might."""
    series = [
        {"metric": {"namespace": "team", "pod": pod}, "values": [[at, cores] for at, cores in own]}
        for pod, own in values.items()
    ]
    document = {"status": "success", "data": {"resultType": "matrix", "result": series}, **more}
    return json.dumps(document, separators=(",", ":") if compact else None).encode()


def expected(body: bytes) -> dict[str, list[float]]:
    """Cores by pod and window, read in the slow, obvious way."""
    found = {}
    for series in json.loads(body)["data"]["result"]:
        row = [np.nan] * WINDOWS
        for at, cores in series["values"]:
            row[(at - START) // 300 - 1] = float(cores)
        found[f"team/{series['metric']['pod']}"] = row
    return found


def parse(body: bytes) -> UsageBlock:
    source = PrometheusSource(PrometheusSettings(url="http://prometheus"))
    return prometheus._block(source._parse(200, bytearray(body)), START, WINDOWS)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_PIECE", 100)  # bytes: a series or two


# A name that looks like the text at which answers are divided must not divide them.
names = st.one_of(
    st.sampled_from(['{"metric":', '},{"metric":{', "\\", '"']),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)
samples = st.lists(
    st.tuples(
        st.integers(1, WINDOWS).map(lambda window: START + 300 * window),
        st.sampled_from(["0.25", "NaN", "+Inf", "1e-3"]),
    ),
    max_size=WINDOWS,
    unique_by=lambda sample: sample[0],
)


@given(values=st.dictionaries(names, samples, max_size=12), compact=st.booleans())
def test_answers_are_read_alike_in_pieces_and_whole(values: Values, compact: bool) -> None:
    body = answer(values, compact=compact)
    block = parse(body)
    want = expected(body)
    assert set(block.pods) == want.keys()
    for pod, row in zip(block.pods, block.cpu, strict=True):
        np.testing.assert_array_equal(row, np.array(want[pod], np.float32))


def test_long_answers_are_divided() -> None:
    body = answer({f"pod-{number}": [(START + 300, "1")] for number in range(100)})
    frame, pieces = prometheus._divided(bytearray(body))
    sizes = [len(frame), *map(len, pieces)]
    assert len(sizes) > 30  # each series has 67 to 68 bytes, so two fill a piece of 100
    assert max(sizes) < 300


def test_a_pod_that_comes_twice_is_refused_wherever_it_comes() -> None:
    values = {f"pod-{number}": [(START + 300, "1")] for number in range(100)}
    body = answer(values).replace(b'"pod-99"', b'"pod-0"')
    with pytest.raises(UsageError, match="several series for team/pod-0"):
        parse(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "something else than data"),
        (b"<html>", "something else than data"),
        (answer({f"pod-{number}": [] for number in range(50)})[:-9], "something else than data"),
        (answer({}, warnings=["half of it"]), "in part: half of it"),
        (answer({"a": [(START + 300, "1")]}, isPartial=True), "in part: some of its storage"),
        (b'{"status":"error","error":"too many samples"}', "too many samples"),
    ],
)
def test_what_is_no_complete_answer_is_an_error(body: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse(body)


def test_what_says_that_it_is_whole_is_read() -> None:
    assert parse(answer({"a": [(START + 300, "1")]}, isPartial=False)).pods == ("team/a",)


async def redirected(status: int) -> UsageBlock:
    """What a server says that has moved below another path."""

    async def moved(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": f"/moved{request.path}?secret=1"})

    async def query(request: web.Request) -> web.Response:
        if "query" not in await request.post():
            return web.json_response({"status": "error", "error": "no query"}, status=400)
        return web.Response(body=answer({"a": [(START + 300, "0.5")]}))

    app = web.Application()
    app.router.add_post("/api/v1/query_range", moved)
    app.router.add_route("*", "/moved/api/v1/query_range", query)
    async with TestServer(app) as server:
        source = PrometheusSource(PrometheusSettings(url=str(server.make_url(""))))
        try:
            return await source.read(START, WINDOWS)
        finally:
            await source.close()


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_that_drops_the_query_is_named(status: int) -> None:
    where = r"127\.0\.0\.1 redirects to http://127\.0\.0\.1:\d+/moved/api/v1/query_range; name"
    with pytest.raises(UsageError, match=where):
        await redirected(status)


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_that_keeps_the_query_is_followed(status: int) -> None:
    assert (await redirected(status)).pods == ("team/a",)


QUERIES = """
evaluation_interval: 1m
tests:
- interval: 30s
  input_series:
  # Of one core, scraped by both of a pair
  - {series: 'cpu{namespace="a",pod="p",container="c",id="1",replica="x"}', values: 0+30x40}
  - {series: 'cpu{namespace="a",pod="p",container="c",id="1",replica="y"}', values: 0+30x40}
  # Two containers of one name, of two and four cores: the first's successor begins at 10m
  - {series: 'cpu{namespace="a",pod="q",container="c",id="2"}', values: 0+60x20 stale}
  - {series: 'cpu{namespace="a",pod="q",container="c",id="3"}', values: _x20 0+120x20}
  # Without ids, as where these are dropped to save memory
  - {series: 'cpu{namespace="a",pod="r",container="c",replica="x"}', values: 0+15x40}
  - {series: 'cpu{namespace="a",pod="r",container="d",replica="x"}', values: 0+15x40}
  - {series: 'cpu{namespace="a",pod="r",container="d",replica="y"}', values: 0+15x40}
  promql_expr_test:
  - expr: 'QUERY'
    eval_time: 20m
    exp_samples:
    - {labels: '{namespace="a",pod="p"}', value: 1}
    - {labels: '{namespace="a",pod="q"}', value: 4}
    - {labels: '{namespace="a",pod="r"}', value: 1}
  - expr: 'round(QUERY)'
    eval_time: 12m
    exp_samples:
    - {labels: '{namespace="a",pod="p"}', value: 1}
    # From 7m to 12m: the first's 3 minutes at 2 cores and the second's 2 at 4, of 5: about 2.8
    - {labels: '{namespace="a",pod="q"}', value: 3}
    - {labels: '{namespace="a",pod="r"}', value: 1}
"""


def test_a_container_that_is_scraped_twice_counts_once(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH: `apt-get install prometheus` brings it")
    rules = QUERIES.replace("QUERY", prometheus.usage_query(PrometheusSettings()))
    file = tmp_path / "queries.yml"
    file.write_text(rules.replace("cpu{", "container_cpu_usage_seconds_total{"))
    command = [promtool, "test", "rules", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_range_is_asked_for_by_the_ends_of_its_windows() -> None:
    asked: dict[str, str] = {}

    async def query(request: web.Request) -> web.Response:
        asked.update({key: str(value) for key, value in (await request.post()).items()})
        return web.Response(body=answer({"a": [(START + 300, "0.5")]}))

    app = web.Application()
    app.router.add_post("/api/v1/query_range", query)
    async with TestServer(app) as server:
        source = PrometheusSource(PrometheusSettings(url=str(server.make_url(""))))
        block = await source.read(START, WINDOWS)
        await source.close()
    # The value at T is that of the window [T - 300, T): windows 0 to 3 end at 300 to 1200.
    assert (int(asked["start"]) - START, int(asked["end"]) - START) == (300, 1200)
    assert block.pods == ("team/a",)
    np.testing.assert_array_equal(block.cpu, [[0.5, np.nan, np.nan, np.nan]])
