"""Keeps up with one kind of object: a list, then a watch, resumed for as long as possible."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Generic, Protocol, TypeVar

import msgspec
import numpy as np
import structlog

from extender.kube import KubeApi
from extender.lag import Turns
from extender.ports import ClusterError, Feed
from extender.telemetry import Telemetry
from models.kube.types import Bookmark, Metadata, Page, Status, WatchEvent

_PAGE = 500
_WATCH_SECONDS = (300, 600)
"""A watch ends after a random time in this range, so that many clients do not resume at once."""

_SUSPICIOUS_SECONDS = 5.0
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0

log = structlog.get_logger()


class Watched(Protocol):
    """Any kind of object."""

    @property
    def metadata(self) -> Metadata | None:
        """Where in the history it stands, among others."""


T = TypeVar("T", bound=Watched)
_page = msgspec.json.Decoder(Page)
_event = msgspec.json.Decoder(WatchEvent)
_bookmark = msgspec.json.Decoder(Bookmark)
_problem = msgspec.json.Decoder(Status)


class ExpiredError(Exception):
    """The API server no longer knows what happened since the version that was asked for."""


class Backoff:
    """Waits that double with each failure in a row, with full jitter; in seconds."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._limit = _FIRST_WAIT

    def next(self, at_least: float = 0.0) -> float:
        """The next wait; ``at_least`` is what the server asked for."""
        wait = at_least + float(self._rng.uniform(0, self._limit))
        self._limit = min(2 * self._limit, _LONGEST_WAIT)
        return wait

    def reset(self) -> None:
        """What was tried has worked."""
        self._limit = _FIRST_WAIT


class Reflector(Generic[T]):
    """Feeds every object of one kind, and every change, into the state."""

    def __init__(
        self,
        api: KubeApi,
        kind: type[T],
        path: str,
        selector: str,
        feed: Feed[T],
        telemetry: Telemetry,
        rng: np.random.Generator,
    ) -> None:
        """Read ``path``; ``selector`` is a field selector, empty for all objects."""
        self._api = api
        self._path = path
        self._fields = {"fieldSelector": selector} if selector else {}
        self._feed: Feed[T] = feed
        self._name = kind.__name__
        self._telemetry = telemetry
        self._rng = rng
        self._backoff = Backoff(rng)
        self._object: Callable[[msgspec.Raw], T] = msgspec.json.Decoder(kind).decode
        self._version = ""

    async def run(self) -> None:
        """List and watch, for ever; what fails is tried again, resumed where possible."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except ExpiredError:
                self._version = ""
                await self._pause("watch expired, listing again", 0.0)
            except ClusterError as e:
                await self._pause(str(e), e.retry_after)
            except (ValueError, RecursionError) as e:
                # Whatever it was cannot be applied, so only a complete list is sure to be right.
                self._version = ""
                await self._pause(f"not what an API server answers: {e}", 0.0)

    async def _pause(self, reason: str, at_least: float) -> None:
        self._telemetry.watch_errors.labels(self._name).inc()
        wait = self._backoff.next(at_least)
        log.warning("watch interrupted", kind=self._name, reason=reason, wait=round(wait, 2))
        await asyncio.sleep(wait)

    async def _list(self) -> None:
        """Read all objects in pages, all as of one moment; what is not there is gone."""
        try:
            self._version = await self._pages(_PAGE)
        except ExpiredError:
            # The moment of the first page was forgotten before the last: all in one answer then.
            self._version = await self._pages(0)
        self._telemetry.relists.labels(self._name).inc()
        log.info("listed", kind=self._name, version=self._version)

    async def _pages(self, size: int) -> str:
        keys: set[str] = set()
        turns = Turns()
        token = ""
        while True:
            params = {"limit": str(size), **self._fields}
            if token:
                params["continue"] = token
            try:
                page = _page.decode(await self._api.call("GET", self._path, params))
            except ClusterError as e:
                if e.status == HTTPStatus.GONE and size:
                    raise ExpiredError from e
                raise
            for item in page.items or ():
                await turns.give_way()
                keys.add(self._feed.put(self._object(item)))
            self._feed.heard()
            token = page.metadata.continue_ or ""
            if not token:
                for _ in self._feed.sift(keys):
                    await turns.give_way()
                return page.metadata.resource_version or ""

    async def _watch(self) -> None:
        """Follow changes until the API server ends the watch. Raises ExpiredError."""
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(self._rng.integers(*_WATCH_SECONDS)),
            **self._fields,
        }
        clock = asyncio.get_running_loop().time
        began, events, turns = clock(), 0, Turns()
        try:
            async for line in self._api.watch(self._path, params):
                self._feed.heard()
                if line.strip():
                    self._apply(_event.decode(line))
                    self._backoff.reset()
                    events += 1
                    await turns.give_way()
        except ClusterError as e:
            if e.status == HTTPStatus.GONE:
                raise ExpiredError from e
            raise
        if not events and clock() - began < _SUSPICIOUS_SECONDS:
            raise ClusterError(0, "the watch ended as soon as it had begun")

    def _apply(self, event: WatchEvent) -> None:
        match event.type:
            case "ADDED" | "MODIFIED":
                self._feed.put(found := self._object(event.object))
                metadata = found.metadata
            case "DELETED":
                self._feed.remove(found := self._object(event.object))
                metadata = found.metadata
            case "ERROR":
                problem = _problem.decode(event.object)
                if problem.code == HTTPStatus.GONE:
                    raise ExpiredError
                raise ClusterError(problem.code or 0, problem.message or "the watch failed")
            case _:
                metadata = _bookmark.decode(event.object).metadata
        self._version = (metadata and metadata.resource_version) or self._version
