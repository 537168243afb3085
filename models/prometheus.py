"""Usage from a Prometheus-compatible server."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import numpy as np

from models.errors import SettingsError
from models.grid import WINDOW
from models.usage_source import PrometheusSettings, UsageBlock, UsageError

MAX_ANSWER = 2**28
"""Bytes of the largest answer that is read: 256 MiB, some ten million samples."""

_MAX_TEXT = 500


class _Series(msgspec.Struct, gc=False):
    metric: dict[str, str]
    values: list[tuple[float, float]] = []


class _Matrix(msgspec.Struct):
    result_type: str = msgspec.field(name="resultType", default="")
    result: list[_Series] = []


class _Answer(msgspec.Struct):
    status: str = ""
    data: _Matrix | None = None
    error: str = ""
    warnings: list[str] | None = None


# Samples are texts ("0.25", "NaN"); without strictness they are read as numbers.
_answer = msgspec.json.Decoder(_Answer, strict=False)


def usage_query(settings: PrometheusSettings) -> str:
    """The PromQL for each pod's cores: the operator's own, or the rate of cAdvisor's counter.

    ``container!=""`` leaves out the sums that cAdvisor also reports for pods and for the machine,
    and ``container!="POD"`` the pause containers of older runtimes; else CPU would count twice.
    """
    if settings.query:
        return settings.query
    matchers = ['container!=""', 'container!="POD"']
    for label, value in sorted(settings.cluster_label.items()):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        matchers.append(f'{label}="{escaped}"')
    series = f"container_cpu_usage_seconds_total{{{','.join(matchers)}}}"
    return f"sum by (namespace,pod) (rate({series}[{WINDOW}s]))"


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

        An answer with warnings is refused: some of a pod's containers may be missing in it, and
        usage that looks lower than it is would be given away.
        """
        form = {
            "query": self._query,
            "start": str(start + WINDOW),
            "end": str(start + windows * WINDOW),
            "step": str(WINDOW),
            "timeout": f"{self._settings.timeout_seconds:g}s",
        }
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                status, body = await self._post(form)
        except TimeoutError as e:
            raise UsageError(
                f"{self._server} did not answer within {self._settings.timeout_seconds:g} s"
            ) from e
        except (aiohttp.ClientError, OSError, ValueError) as e:
            raise UsageError(f"{self._server} could not be asked: {type(e).__name__}") from e
        return await asyncio.to_thread(self._parse, status, body, start, windows)

    async def close(self) -> None:
        """Close the connection."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, form: dict[str, str]) -> tuple[int, bytes]:
        if self._session is None:
            # The whole call is limited by `read`.
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        headers = {}
        if self._settings.token_file:
            token = await asyncio.to_thread(Path(self._settings.token_file).read_text)
            headers["Authorization"] = f"Bearer {token.strip()}"
        body = bytearray()
        async with self._session.post(
            self._url, data=form, headers=headers, ssl=self._tls
        ) as answer:
            async for part in answer.content.iter_any():
                body += part
                if len(body) > MAX_ANSWER:
                    raise ValueError("the answer is too large")
            return answer.status, bytes(body)

    def _parse(self, status: int, body: bytes, start: int, windows: int) -> UsageBlock:
        try:
            answer = _answer.decode(body.replace(b'"+Inf"', b'"Inf"'))
        except (ValueError, RecursionError) as e:
            raise UsageError(
                f"{self._server} answered {status} with something else than data"
            ) from e
        if answer.status != "success" or answer.data is None:
            raise UsageError(f"{self._server} answered {status}: {answer.error[:_MAX_TEXT]}")
        if answer.warnings:
            raise UsageError(f"{self._server} answered in part: {answer.warnings[0][:_MAX_TEXT]}")
        return _block(answer.data, start, windows)


def _block(matrix: _Matrix, start: int, windows: int) -> UsageBlock:
    """Arrange samples by pod and window; series without a pod's labels are none of ours."""
    rows: dict[str, _Series] = {}
    for series in matrix.result:
        namespace, pod = series.metric.get("namespace"), series.metric.get("pod")
        if namespace and pod:
            key = f"{namespace}/{pod}"
            if key in rows:
                raise UsageError(f"the query returns several series for {key}; sum them in it")
            rows[key] = series
    cpu = np.full((len(rows), windows), np.nan, np.float32)
    for row, series in enumerate(rows.values()):
        samples = np.array(series.values, np.float64).reshape(-1, 2)
        column = np.rint((samples[:, 0] - start) / WINDOW).astype(np.int64) - 1
        inside = (column >= 0) & (column < windows)
        with np.errstate(over="ignore"):  # what no float32 holds becomes infinite: a gap
            cpu[row, column[inside]] = samples[inside, 1]
    return UsageBlock(start, tuple(rows), cpu)


def _tls(ca_file: str) -> ssl.SSLContext | bool:
    if not ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as e:
        raise SettingsError(f"prometheus.ca_file: {ca_file} cannot be read: {e}") from e
