"""Asks a registry which version an alias names and brings it to disk, without importing MLflow.

A look at a server is one HTTP request; a look at a database file is the file's time of change. A
download is a child process (`archimedes models pull`), which also checks the model.
"""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec

from models.errors import RegistryError
from models.store import DIGEST_TAG, MODEL_NAME, find
from models.tracking import database_file

_ALIAS_PATH = "/api/2.0/mlflow/registered-models/alias"


class UnreachableError(RegistryError):
    """The registry did not answer, so asking it for another version is no use."""


class _Tag(msgspec.Struct, frozen=True):
    key: str
    value: str = ""


class _ModelVersion(msgspec.Struct, frozen=True):
    version: str
    tags: tuple[_Tag, ...] = ()


class _AliasReply(msgspec.Struct, frozen=True):
    model_version: _ModelVersion


class _Pulled(msgspec.Struct, frozen=True):
    folder: str


class Sight(msgspec.Struct, frozen=True):
    """What a look at an alias saw: two equal sights mean that nothing has changed.

    version, digest: of the version, where a server told them.
    stamp: the database file's time of change, where there is no server.
    """

    version: str = ""
    digest: str = ""
    stamp: Hashable = None


class RegistryClient:
    """One registry and the folder for local copies of its versions.

    Args:
        tracking_uri: MLflow's address.
        directory: folder of the copies.
        headers: sent with each look, see `mlflow_headers`.
        look_seconds: a look may take this long.
        pull_seconds: a download with its check may take this long.
    """

    def __init__(
        self,
        tracking_uri: str,
        directory: Path,
        *,
        headers: Mapping[str, str],
        look_seconds: float,
        pull_seconds: float,
    ) -> None:
        self._uri = tracking_uri
        self._directory = directory
        self._headers = dict(headers)
        self._timeout = aiohttp.ClientTimeout(total=look_seconds)
        self._pull_seconds = pull_seconds

    async def look(self, alias: str) -> Sight:
        """What an alias names now.

        Raises:
            UnreachableError: the registry does not answer.
            RegistryError: it names no version.
        """
        path = database_file(self._uri)
        if path is None:
            return await self._ask(alias)
        try:
            return Sight(stamp=await asyncio.to_thread(_stamp, path))
        except OSError as e:
            raise UnreachableError(f"the registry {path} cannot be read: {e.strerror}") from e

    async def fetch(self, alias: str, sight: Sight) -> Path:
        """The folder of the checked copy of what was seen.

        Raises:
            RegistryError: it cannot be downloaded, or must not serve.
        """
        if sight.digest:
            copy = await asyncio.to_thread(find, self._directory, sight.version, sight.digest)
            if copy is not None:
                return copy
        return await self._pull(sight.version or alias)

    async def _ask(self, alias: str) -> Sight:
        url = self._uri.rstrip("/") + _ALIAS_PATH
        query = {"name": MODEL_NAME, "alias": alias}
        try:
            async with (
                aiohttp.ClientSession(
                    timeout=self._timeout, headers=self._headers, trust_env=True
                ) as session,
                session.get(url, params=query) as reply,
            ):
                status, body = reply.status, await reply.read()
        except (aiohttp.ClientError, TimeoutError) as e:
            raise UnreachableError(f"MLflow does not answer: {str(e) or 'timeout'}") from e
        except ValueError as e:
            raise UnreachableError(f"MLflow cannot be asked: {e}") from e
        if status in (400, 404) and b'"error_code"' in body:
            raise RegistryError(f"no version of {MODEL_NAME} has the alias {alias}")
        if status != 200:
            raise UnreachableError(f"MLflow answers with HTTP status {status}")
        return _sight(body)

    async def _pull(self, ref: str) -> Path:
        try:
            status, out, err = await self._run("pull", ref, "--to", str(self._directory), "--json")
        except TimeoutError as e:
            raise RegistryError(
                f"fetching model {ref} took longer than {self._pull_seconds:g} s"
            ) from e
        except OSError as e:
            raise RegistryError(f"model {ref} cannot be fetched: no child process: {e}") from e
        if status != 0:
            said = err.decode(errors="replace").strip().splitlines() or ["no message"]
            raise RegistryError(f"model {ref} cannot be fetched: {said[-1]}")
        try:
            return Path(msgspec.json.decode(out, type=_Pulled).folder)
        except msgspec.DecodeError as e:
            raise RegistryError(f"model {ref} cannot be fetched: {out[:100]!r}") from e

    async def _run(self, *arguments: str) -> tuple[int | None, bytes, bytes]:
        """Exit code, stdout and stderr of `archimedes models` in a child that ends in time."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "models.cli", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            # The address may hold a password, which a command line would show to everybody.
            env={**os.environ, "MLFLOW_TRACKING_URI": self._uri, "OMP_NUM_THREADS": "1"},
        )
        try:
            out, err = await asyncio.wait_for(child.communicate(), self._pull_seconds)
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        return child.returncode, out, err


def mlflow_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """The credentials that MLflow's own client takes from the environment, as HTTP headers."""
    token = environment.get("MLFLOW_TRACKING_TOKEN", "").strip()
    user = environment.get("MLFLOW_TRACKING_USERNAME")
    if user:
        pair = f"{user}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _sight(body: bytes) -> Sight:
    try:
        found = msgspec.json.decode(body, type=_AliasReply).model_version
    except (ValueError, RecursionError) as e:
        raise UnreachableError(f"MLflow answers with something else than a version: {e}") from e
    digest = next((tag.value for tag in found.tags if tag.key == DIGEST_TAG), "")
    if not found.version.isdecimal() or not digest:
        raise RegistryError(f"version {found.version!r} was not registered by archimedes")
    return Sight(found.version, digest)


def _stamp(path: Path) -> Hashable:
    """What changes whenever an SQLite database does, also where it has a write-ahead log."""
    wal = path.with_name(path.name + "-wal")
    files = [path, wal] if wal.exists() else [path]
    return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in (f.stat() for f in files))
