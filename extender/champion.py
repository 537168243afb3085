"""Which model serves: follows the registry's champion, and has something to fall back on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from extender.registry_client import RegistryClient, Sight, UnreachableError
from models.artifact import load_model
from models.classical import CLASSICAL
from models.errors import ArchimedesError
from models.model import Model
from models.policy import Policy
from models.shipped import shipped
from models.store import copies, manifest_digest

FALLBACK = "max-7d"
"""The classical predictor that serves where no version can. With its default knob, on machines of
the Azure V1 and Bitbrains traces, it violated 0.4 / 1.2 / 3.8 % at 1 / 6 / 24 h at most: the least
of those that give back a useful amount (Koordinator's 7.8 %, VPA's 17 % at 24 h)."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What serves.

    source: the champion, the previous version, the last copy on disk, a classical predictor with
    its default knob, or nothing (then nothing is promised).
    version: of the model, empty for "none".
    reason: why the champion does not serve or cannot be looked up; empty when all is well.
    """

    source: Literal["champion", "previous", "disk", "classical", "none"]
    version: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Served:
    """A version as it lies on disk: of two registries, the same number is another model."""

    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class _Refused:
    """A champion that could not serve, why, and when (seconds since the epoch) to try it again."""

    sight: Sight
    reason: str
    retry_at: float


class ChampionSource:
    """Finds, fetches and loads the champion; keeps what serves when that fails.

    Args:
        tracking_uri: MLflow's address; empty for the copies on disk only.
        directory: folder of the copies.
        clock: seconds since the epoch.
        fallback: serves where no version can, see `fallback_model`; None for nothing.
        headers: sent with each look at the alias, see `extender.registry_client.mlflow_headers`.
        look_seconds: a look at the alias may take this long.
        pull_seconds: a download with its check may take this long.
        retry_seconds: a champion that could not serve is tried again after this long.
    """

    def __init__(
        self,
        tracking_uri: str,
        directory: Path,
        *,
        clock: Callable[[], float],
        fallback: Model | None,
        headers: Mapping[str, str] | None = None,
        look_seconds: float = 5.0,
        pull_seconds: float = 180.0,
        retry_seconds: float = 600.0,
    ) -> None:
        self._uri = tracking_uri
        self._directory = directory
        self._clock = clock
        self._fallback = fallback
        self._retry_seconds = retry_seconds
        self._client = RegistryClient(
            tracking_uri,
            directory,
            headers=headers or {},
            look_seconds=look_seconds,
            pull_seconds=pull_seconds,
        )
        self._served: _Served | None = None
        self._seen: Sight | None = None
        self._refused: _Refused | None = None
        self._status = ModelStatus("none", "", "nothing was loaded yet")

    @property
    def status(self) -> ModelStatus:
        """What serves now, and why it is not the champion."""
        return self._status

    async def initial(self) -> tuple[Model | None, ModelStatus]:
        """The model to start with: champion, previous, a copy on disk, classical, or None.

        Asked for again, as after a crash of what installs models, it begins anew: whether the model
        that was handed out then ever served is not known here.
        """
        self._served = self._seen = None
        reasons: list[str] = []
        model = await self._from_registry(reasons) or await self._from_disk(reasons)
        if model is None and self._fallback is not None:
            model = self._fallback
            self._status = ModelStatus("classical", model.version, "; ".join(reasons))
        elif model is None:
            self._status = ModelStatus("none", "", "; ".join(reasons))
        return model, self._status

    async def poll(self) -> Model | None:
        """A new champion, or None where nothing changed or what is new cannot serve."""
        if not self._uri:
            return None
        try:
            sight = await self._client.look("champion")
            if sight == self._seen:
                self._status = replace(self._status, reason="")
                return None
            refused = self._refused
            if refused and sight == refused.sight and self._clock() < refused.retry_at:
                self._status = replace(self._status, reason=refused.reason)
                return None
            model = await self._take("champion", sight)
        except ArchimedesError as e:
            self._status = replace(self._status, reason=str(e))
            return None
        self._status = ModelStatus("champion", self._version())
        return model

    async def _from_registry(self, reasons: list[str]) -> Model | None:
        if not self._uri:
            reasons.append("no tracking URI is set")
            return None
        aliases: tuple[Literal["champion", "previous"], ...] = ("champion", "previous")
        for alias in aliases:
            try:
                model = await self._take(alias, await self._client.look(alias))
            except UnreachableError as e:
                reasons.append(str(e))
                return None
            except ArchimedesError as e:
                reasons.append(f"{alias}: {e}")
                continue
            self._status = ModelStatus(alias, self._version(), "; ".join(reasons))
            return model
        return None

    async def _from_disk(self, reasons: list[str]) -> Model | None:
        """The copy that was asked for last and still loads."""
        for folder in await asyncio.to_thread(copies, self._directory):
            try:
                model = await self._load(folder)
            except ArchimedesError as e:
                reasons.append(f"copy {folder.name}: {e}")
                continue
            self._status = ModelStatus("disk", self._version(), "; ".join(reasons))
            return model
        return None

    async def _take(self, alias: str, sight: Sight) -> Model | None:
        """Bring what was seen into service; None where it serves already.

        Raises:
            ArchimedesError: it cannot be fetched, or must not serve.
        """
        try:
            model = await self._load(await self._client.fetch(alias, sight))
        except ArchimedesError as e:
            if alias == "champion":
                self._refused = _Refused(sight, str(e), self._clock() + self._retry_seconds)
            raise
        if alias == "champion":
            self._seen, self._refused = sight, None
        return model

    async def _load(self, folder: Path) -> Model | None:
        served = _Served(folder.name, await asyncio.to_thread(manifest_digest, folder))
        if served == self._served:
            return None
        model = await asyncio.to_thread(load_model, folder, served.version)
        self._served = served
        return model

    def _version(self) -> str:
        return "" if self._served is None else self._served.version


def fallback_model(policy: Policy) -> Model:
    """The classical predictor that serves where no version can, with the settings' policy."""
    return shipped(CLASSICAL[FALLBACK], policy)
