"""Usage from a Prometheus-compatible server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from http import HTTPStatus
from itertools import chain, pairwise
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
import numpy as np
from aiohttp.hdrs import METH_POST

from models.arrays import Floats32
from models.errors import SettingsError
from models.grid import WINDOW
from models.usage_source import PrometheusSettings, UsageBlock, UsageError

MAX_ANSWER = 2**28
"""Bytes of the largest answer that is read: 256 MiB, some ten million samples."""

_MAX_TEXT = 500
_SERIES = b'{"metric":'
_PIECE = 2**16
"""Bytes that are decoded at a time: few, as objects, and a fraction of a millisecond."""

T = TypeVar("T")


class Series(msgspec.Struct, gc=False):
    """One series of an answer: its labels, and (seconds since the epoch, value) in their order."""

    metric: dict[str, str]
    values: list[tuple[float, float]] = []


class _Matrix(msgspec.Struct):
    result_type: str = msgspec.field(name="resultType", default="")
    result: list[Series] = []


class _Answer(msgspec.Struct):
    status: str = ""
    data: _Matrix | None = None
    error: str = ""
    warnings: list[str] | None = None
    is_partial: bool = msgspec.field(
        name="isPartial", default=False
    )  # VictoriaMetrics' word for it


# Samples are texts ("0.25", "NaN"); without strictness they are read as numbers.
_answer = msgspec.json.Decoder(_Answer, strict=False)
_piece = msgspec.json.Decoder(list[Series], strict=False)


def usage_query(settings: PrometheusSettings) -> str:
    """The PromQL for each pod's cores: the operator's own, or the rate of cAdvisor's counter."""
    return settings.query or _rate(settings, WINDOW)


def peak_query(settings: PrometheusSettings) -> str:
    """The PromQL for the most cores that each pod used within a window: the highest of four rates.

    A rate needs two samples and servers scrape once a minute at the slowest, so each is over two
    minutes; they end 0 to 3 minutes before the window does, so that none reaches into the window
    before. Whether a range holds its oldest end depends on the server's version, hence 3m1s.
    """
    return f"max_over_time({_rate(settings, 120)}[3m1s:1m])"


def selector(metric: str, settings: PrometheusSettings, *matchers: str) -> str:
    """The series of a metric that are this cluster's and match."""
    own = [f"{label}={_quoted(value)}" for label, value in sorted(settings.cluster_label.items())]
    return f"{metric}{{{','.join([*matchers, *own])}}}"


def _rate(settings: PrometheusSettings, seconds: int) -> str:
    """The rate of cAdvisor's counter over so many seconds, for each pod.

    ``container!=""`` leaves out the sums that cAdvisor also reports for pods and for the machine,
    and ``container!="POD"`` the pause containers of older runtimes; else CPU would count twice. So
    it would where two servers or two jobs scrape a container: the highest of its rates counts. A
    container that restarts has another ``id``, and the rates of both are added up.
    """
    series = selector(
        "container_cpu_usage_seconds_total", settings, 'container!=""', 'container!="POD"'
    )
    each = f"max by (namespace,pod,container,id) (rate({series}[{seconds}s]))"
    return f"sum by (namespace,pod) ({each})"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


class PrometheusSource:
    """Reads windows with range queries; the value at T is that of the window [T - 300, T)."""

    def __init__(self, settings: PrometheusSettings) -> None:
        """Raises SettingsError where the authority's certificates cannot be read."""
        self._settings = settings
        self._query = usage_query(settings)
        self._url = settings.url.rstrip("/") + "/api/v1/query_range"
        self._server = urlsplit(settings.url).hostname  # for texts: the URL may hold a password
        self._tls = _tls(settings.ca_file)
        self._session: aiohttp.ClientSession | None = None

    async def read(self, start: int, windows: int) -> UsageBlock:
        """The windows from ``start`` on, of every pod that the query returns. Raises UsageError.

        What `series` refuses is refused here too: usage that looks lower than it is would be given
        away.
        """
        last = start + windows * WINDOW
        # Nothing here holds the body, so that it is freed in the thread.
        found = self._parse(*await self._ask(self._query, start + WINDOW, last, step=WINDOW))
        return await asyncio.to_thread(_block, found, start, windows)

    async def series(self, query: str, first: int, last: int, *, step: int) -> list[Series]:
        """What a query returns at ``first``, ``first + step`` ... ``last``. Raises UsageError.

        An answer with warnings, or one that says it is partial, is refused: series may be missing.
        """
        status, body = await self._ask(query, first, last, step=step)
        return list(chain.from_iterable(self._parse(status, body)))

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, query: str, first: int, last: int, *, step: int) -> tuple[int, bytearray]:
        """Status and body of the answer."""
        form = {
            "query": query,
            "start": str(first),
            "end": str(last),
            "step": str(step),
            "timeout": f"{self._settings.timeout_seconds:g}s",
        }
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await self._post(form)
        except TimeoutError as e:
            raise UsageError(
                f"{self._server} did not answer within {self._settings.timeout_seconds:g} s"
            ) from e
        except (aiohttp.ClientError, OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or type(e).__name__
            raise UsageError(f"{self._server} could not be asked: {why}") from e

    async def _post(self, form: dict[str, str]) -> tuple[int, bytearray]:
        if self._session is None:
            # The whole call is limited by `read`.
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        headers = {}
        if self._settings.token_file:
            headers["Authorization"] = f"Bearer {await asyncio.to_thread(self._token)}"
        body = bytearray()
        async with self._session.post(
            self._url, data=form, headers=headers, ssl=self._tls
        ) as answer:
            if answer.method != METH_POST:  # 307 and 308 keep it, other redirects drop the query
                target = answer.url.with_user(None).with_query(None)
                raise UsageError(
                    f"{self._server} redirects to {target}; name the address of Prometheus there"
                )
            async for part in answer.content.iter_any():
                body += part
                if len(body) > MAX_ANSWER:
                    raise UsageError(
                        f"{self._server} answers with more than {MAX_ANSWER >> 20} MiB; "
                        "narrow the query to what is needed of it"
                    )
            return answer.status, body

    def _token(self) -> str:
        file = self._settings.token_file
        try:
            return Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as e:
            why = getattr(e, "strerror", None) or "it is no text"
            raise UsageError(f"the token file {file} cannot be read: {why}") from e

    def _parse(self, status: int, body: bytearray) -> Iterator[list[Series]]:
        """Read an answer, of which a piece at a time is in the interpreter's hands."""
        frame, pieces = _divided(body)
        answer = self._decode(_answer, frame, status)
        if answer.status != "success" or answer.data is None:
            raise UsageError(f"{self._server} answered {status}: {answer.error[:_MAX_TEXT]}")
        if answer.warnings:
            raise UsageError(f"{self._server} answered in part: {answer.warnings[0][:_MAX_TEXT]}")
        if answer.is_partial:
            raise UsageError(f"{self._server} answered in part: some of its storage is unavailable")
        yield answer.data.result
        for piece in pieces:
            yield self._decode(_piece, piece, status)

    def _decode(self, decoder: msgspec.json.Decoder[T], piece: bytearray, status: int) -> T:
        try:
            return decoder.decode(piece.replace(b'"+Inf"', b'"Inf"'))
        except (ValueError, RecursionError) as e:
            raise UsageError(f"{self._server} {_foreign(status)}") from e


def _divided(body: bytearray) -> tuple[bytearray, Iterator[bytearray]]:
    """An answer with only its last series, and the other series in arrays of some `_PIECE` bytes.

    Decoded, an answer takes several times its size, and 150,000 pods' has 30 MB; decoding is also
    one call that keeps the interpreter to itself. A series begins with the text that is searched
    for, and no text inside a string can be like it, as its quotes would be escaped. Where a server
    writes its answer in another way, the answer is one piece.
    """
    cuts = [first := body.find(_SERIES)]
    while (at := body.find(_SERIES, cuts[-1] + _PIECE)) >= 0 and first >= 0:
        cuts.append(at)
    if first < 0:
        return body, iter(())
    return (
        body[:first] + body[cuts[-1] :],
        (
            bytearray(b"[") + body[start:stop].rstrip(b", \n") + b"]"
            for start, stop in pairwise(cuts)
        ),
    )


def _block(found: Iterator[list[Series]], start: int, windows: int) -> UsageBlock:
    """Arrange samples by pod and window."""
    names: dict[str, None] = {}
    cpu = np.concatenate([_cores(series, names, start, windows) for series in found])
    return UsageBlock(start, tuple(names), cpu)


def _cores(series: list[Series], names: dict[str, None], start: int, windows: int) -> Floats32:
    """Usage of the series that have a pod's labels, [K, W]; adds their names to ``names``."""
    kept = []
    for each in series:
        namespace, pod = each.metric.get("namespace"), each.metric.get("pod")
        if namespace and pod:
            key = f"{namespace}/{pod}"
            if key in names:
                raise UsageError(f"the query returns several series for {key}; sum them in it")
            names[key] = None
            kept.append(each.values)
    cpu = np.full((len(kept), windows), np.nan, np.float32)
    row = np.repeat(np.arange(len(kept)), [len(values) for values in kept])
    samples = np.array(list(chain.from_iterable(kept)), np.float64).reshape(-1, 2)
    column = np.rint((samples[:, 0] - start) / WINDOW).astype(np.int64) - 1
    inside = (column >= 0) & (column < windows)
    with np.errstate(over="ignore"):  # what no float32 holds becomes infinite: a gap
        cpu[row[inside], column[inside]] = samples[inside, 1]
    return cpu


def _foreign(status: int) -> str:
    """What an answer that is not Prometheus' own says by its status alone."""
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"refused the token, or wants one (status {status})"
    return f"answered {status} with something else than data"


def _tls(ca_file: str) -> ssl.SSLContext | bool:
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as e:
        raise SettingsError(f"prometheus.ca_file: {ca_file} cannot be read: {e}") from e
