"""TLS with client certificates: who is let in, and rotation while calls go on. Real handshakes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
import uvloop

from extender.app import listening
from extender.settings import ProbeSettings
from models.errors import SettingsError
from tests.authorities import Authority, Files, client_context
from tests.extender_world import World, args, pod_json

PROBES = ProbeSettings(host="127.0.0.1", port=0)
SCHEDULER = "kube-scheduler"


@dataclass(frozen=True)
class Place:
    """A world that listens with TLS; both authorities are known to the test."""

    world: World
    url: str
    folder: Path
    files: Files
    servers: Authority
    clients: Authority

    async def reload(self) -> None:
        """What the loop does every few seconds."""
        assert self.world.server.gate is not None
        await self.world.server.gate.reload()

    def count(self, outcome: str) -> float:
        """How many reloads there were."""
        counter = self.world.server.telemetry.tls_reloads
        return float(counter.labels(outcome)._value.get())

    def certificate(self, name: str = SCHEDULER) -> ssl.SSLContext:
        """A caller with a certificate of the client authority."""
        return client_context(self.folder, self.servers, self.clients.client(name))

    async def filter(self, context: ssl.SSLContext) -> int:
        """The status of a filter call on a connection of its own."""
        async with aiohttp.ClientSession() as session:
            return await post(session, self.url, context)


@asynccontextmanager
async def place(folder: Path, *names: str) -> AsyncIterator[Place]:
    servers, clients = Authority(), Authority()
    files = Files(folder)
    files.write(servers, clients)
    world = World(port=0, tls=files.settings(*names), probes=PROBES)
    world.sync()
    world.forecast()
    async with listening(world.server) as url:
        yield Place(world, url, folder, files, servers, clients)


async def post(session: aiohttp.ClientSession, url: str, context: ssl.SSLContext) -> int:
    body = args(pod_json("p", 100), ["n1", "n2"])
    async with session.post(f"{url}/v1/filter", json=body, ssl=context) as answer:
        assert answer.status != 200 or set((await answer.json())["NodeNames"]) == {"n1", "n2"}
        return answer.status


async def test_the_right_certificate_is_served(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        assert here.url.startswith("https://127.0.0.1:")
        assert await here.filter(here.certificate()) == 200


async def test_no_certificate_and_one_of_another_authority_are_refused(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        for own in (None, Authority().client(SCHEDULER), here.servers.client(SCHEDULER)):
            context = client_context(tmp_path, here.servers, own)
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await here.filter(context)


async def test_a_servers_certificate_is_no_clients(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        context = client_context(tmp_path, here.servers, here.clients.server())
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await here.filter(context)


async def test_plain_http_and_old_versions_are_refused(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        old = here.certificate()
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself would refuse
        with pytest.raises(aiohttp.ClientError):
            await here.filter(old)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            new = here.certificate()
            new.minimum_version = new.maximum_version = version
            assert await here.filter(new) == 200
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(here.url.replace("https", "http") + "/v1/nodes")


async def test_only_the_listed_names_may_call(tmp_path: Path) -> None:
    async with place(tmp_path, SCHEDULER, "ops") as here:
        assert await here.filter(here.certificate(SCHEDULER)) == 200
        assert await here.filter(here.certificate("ops")) == 200
        assert await here.filter(here.certificate("kubelet")) == 403
        assert len(here.world.state.ledger) == 1  # the same pod each time; the third held nothing


async def test_probes_need_no_certificate_and_reach_nothing_else(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with place(tmp_path):
            await only_probes(listening_for_probes(logs))


async def test_probes_have_a_listener_of_their_own_without_tls_too() -> None:
    world = World(port=0, probes=PROBES)
    world.sync()
    with structlog.testing.capture_logs() as logs:
        async with listening(world.server) as url, aiohttp.ClientSession() as session:
            probes = listening_for_probes(logs)
            assert probes != url
            await only_probes(probes)
            async with session.get(f"{url}/v1/nodes") as answer:
                assert answer.status == 200
    with structlog.testing.capture_logs() as logs:
        async with listening(World(port=0).server):
            assert [line for line in logs if line["event"] == "listening for probes"] == []


def listening_for_probes(logs: list[MutableMapping[str, Any]]) -> str:
    (url,) = [line["url"] for line in logs if line["event"] == "listening for probes"]
    return str(url)


async def only_probes(url: str) -> None:
    """Health and metrics are there; no page that names pods or nodes, and no verb."""
    async with aiohttp.ClientSession() as session:
        for path in ("livez", "healthz", "readyz", "metrics"):
            async with session.get(f"{url}/{path}") as answer:
                assert answer.status == 200, path
        for path in ("v1/nodes", "v1/nodes/n1", "v1/decisions"):
            async with session.get(f"{url}/{path}") as answer:
                assert answer.status == 404, path
        for verb in ("filter", "prioritize", "bind", "preempt"):
            async with session.post(f"{url}/v1/{verb}", json={}) as answer:
                assert answer.status == 404, verb


async def test_a_rotation_loses_no_call_and_forgets_the_old_authority(tmp_path: Path) -> None:
    await rotate_under_load(tmp_path)


def test_the_same_in_the_event_loop_that_serves(tmp_path: Path) -> None:
    uvloop.run(rotate_under_load(tmp_path))


async def rotate_under_load(folder: Path) -> None:
    """Four callers on connections that are kept; all three files are replaced meanwhile."""
    async with place(folder) as here:
        old = here.certificate()
        servers, clients = Authority(), Authority()
        # As kube-scheduler does: its own files are rotated too, for its next connection.
        new = client_context(folder, servers, clients.client(SCHEDULER))
        contexts, answers = {"now": old}, {old: [0] * 4, new: [0] * 4}
        enough, stop = {old: asyncio.Event(), new: asyncio.Event()}, asyncio.Event()

        async def call(caller: int) -> None:
            async with aiohttp.ClientSession() as session:
                while not stop.is_set():
                    context = contexts["now"]
                    assert await post(session, here.url, context) == 200
                    answers[context][caller] += 1
                    if min(answers[context]) >= 10:
                        enough[context].set()

        async with asyncio.TaskGroup() as group:
            for caller in range(4):
                group.create_task(call(caller))
            await enough[old].wait()
            here.files.write(servers, clients)
            await here.reload()
            contexts["now"] = new
            await enough[new].wait()
            stop.set()
        assert here.count("renewed") == 1
        assert await here.filter(new) == 200
        outdated = client_context(folder, servers, here.clients.client(SCHEDULER))
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await here.filter(outdated)


async def test_an_old_connection_gets_one_more_answer(tmp_path: Path) -> None:
    """Also where the caller does not heed the header: the server closes it."""
    async with place(tmp_path) as here:
        port = int(here.url.rsplit(":", 1)[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=here.certificate())
        here.files.write(here.servers, Authority())
        await here.reload()
        writer.write(b"GET /v1/nodes HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()  # to the end: the connection is closed
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nConnection: close\r\n" in answer
        writer.close()
        await writer.wait_closed()


async def test_a_session_cannot_be_resumed_past_a_rotation(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        context = here.certificate()
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # its session is known after the handshake
        port = int(here.url.rsplit(":", 1)[1])

        def resume(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
            with (
                socket.create_connection(("127.0.0.1", port)) as raw,
                context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as wrapped,
            ):
                return wrapped.session

        session = await asyncio.to_thread(resume, None)
        here.files.write(here.servers, Authority())
        await here.reload()
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(resume, session)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nxxxx\n", None])
async def test_a_broken_file_leaves_the_old_ones_in_use(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    async with place(tmp_path) as here:
        good = (tmp_path / name).read_bytes()
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content)
        with structlog.testing.capture_logs() as logs:
            await here.reload()
            await here.reload()
        assert [line["event"] for line in logs] == [
            "certificates not renewed, the old ones stay in use"  # said once
        ]
        assert name in logs[0]["error"]
        assert here.count("failed") == 2
        assert await here.filter(here.certificate()) == 200
        (tmp_path / name).write_bytes(good)
        await here.reload()
        assert here.count("renewed") == 0  # nothing has changed after all
        here.files.write(here.servers, here.clients)
        await here.reload()
        assert here.count("renewed") == 1
        assert await here.filter(here.certificate()) == 200


async def test_a_key_that_is_not_the_certificates_waits_for_the_certificate(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        certificate, key = here.servers.server()
        (tmp_path / "tls.key").write_bytes(key)
        await here.reload()
        assert (here.count("failed"), here.count("renewed")) == (1, 0)
        (tmp_path / "tls.crt").write_bytes(certificate)
        await here.reload()
        assert here.count("renewed") == 1


async def test_the_loop_looks_by_itself(tmp_path: Path) -> None:
    servers, clients = Authority(), Authority()
    files = Files(tmp_path)
    files.write(servers, clients)
    world = World(port=0, tls=files.settings(reload_seconds=1.0))
    loops = asyncio.create_task(world.server.loops.run())
    renewed = world.server.telemetry.tls_reloads.labels("renewed")
    async with listening(world.server), asyncio.timeout(10):
        files.write(servers, clients)
        while renewed._value.get() == 0:  # noqa: ASYNC110 - the loop has nobody to tell
            await asyncio.sleep(0.05)
    loops.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loops
    await world.server.close()


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key", "ca.crt"])
async def test_it_does_not_start_without_its_files(tmp_path: Path, missing: str) -> None:
    files = Files(tmp_path)
    files.write(Authority(), Authority())
    (tmp_path / missing).unlink()
    with pytest.raises(SettingsError, match=missing):
        World(port=0, tls=files.settings())


async def test_a_key_with_a_passphrase_is_refused_instead_of_asked_for(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    files = Files(tmp_path)
    files.write(Authority(), Authority())
    key = serialization.load_pem_private_key((tmp_path / "tls.key").read_bytes(), None)
    (tmp_path / "tls.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(SettingsError, match=r"tls\.key cannot be used"):
        World(port=0, tls=files.settings())
