"""`why` and `nodes`: what is said about decisions of a real server, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from archimedes.cli import assemble, main
from extender.app import listening
from extender.decision_log import Binding, Candidate, Decision, End, Preemption, Record
from extender.explain import HorizonView, NodeView, explanation
from extender.locks import Lock
from extender.wire import BindingArgs
from models.errors import ArchimedesError
from models.policy import HORIZONS
from tests.authorities import Authority, Files
from tests.extender_world import World, as_pod, pod_json
from tests.test_choose_alone import owned

# The pure part


def node(
    name: str, reclaimable: list[int], promised: int = 0, blocked: str = "", withheld: int = 0
) -> NodeView:
    """A node by what is reclaimable for each horizon."""
    horizons = tuple(
        HorizonView(hours, free, withheld, 0 if blocked else max(free - withheld - promised, 0))
        for hours, free in zip(HORIZONS, reclaimable, strict=True)
    )
    return NodeView(name, 8.0, 60.0, blocked, promised, horizons)


def decision(millicpu: int = 2000, hours: int = 6, **fields: Any) -> Decision:  # noqa: ANN401
    """A refused offline pod's decision, unless said otherwise."""
    chosen: dict[str, Any] = {
        "time": 1000.0,
        "pod": "default/p",
        "uid": "u1",
        "offline": True,
        "snapshot": 7,
        "model_version": "3",
        "offered": 2,
        "candidates": (),
        "rejected": {"asks 2000m for 6 h, more than is reclaimable": 2},
    }
    return Decision(millicpu=millicpu, horizon_hours=hours, **(chosen | fields))


def bound(error: str = "", uid: str = "u1") -> Binding:
    return Binding(
        time=1001.0,
        pod="default/p",
        uid=uid,
        node="n1",
        millicpu=2000,
        horizon_hours=6,
        model_version="3",
        error=error,
    )


def preempted(**fields: Any) -> Preemption:  # noqa: ANN401
    """A preempt call: one of three nodes would have room."""
    chosen: dict[str, Any] = {
        "kept": 1,
        "nodes": ("n2",),
        "rejected": {"asks 2000m for 6 h, more than is reclaimable": 2},
    }
    return Preemption(
        time=1000.5,
        pod="default/p",
        uid="u1",
        offline=True,
        millicpu=2000,
        horizon_hours=6,
        snapshot=7,
        model_version="3",
        proposed=3,
        **(chosen | fields),
    )


def helps(*nodes: NodeView, millicpu: int = 2000, hours: int = 6) -> list[str]:
    found = explanation([decision(millicpu, hours)], nodes)
    assert found is not None
    return list(found.would_help)


def test_a_smaller_ask_a_shorter_duration_or_fewer_promises_would_help() -> None:
    first = node("n1", [3000, 2500, 1900, 1800, 1700])
    second = node("n2", [4000, 4000, 4000, 4000, 4000], promised=3500)
    # For 6 h: 1900 left on n1, 4000 - 3500 = 500 on n2; for 3 h, n1 has 2500.
    smaller, shorter, fewer = helps(first, second)
    assert smaller == "ask for at most 1900m: n1 has the most for 6 h"
    assert shorter == (
        "end within 3 h, and say so with the annotation archimedes.dev/expected-duration: "
        "1 of 2 nodes could promise it"
    )
    assert fewer == (
        "on 1 of 2 nodes it would fit beside fewer offline pods: on n2, "
        "1500m of what is promised would have to end"  # 2000 - 500
    )


def test_what_locks_withhold_is_not_sought_from_other_pods() -> None:
    locked = node("n1", [5000] * 5, promised=500, withheld=4000)
    assert helps(locked, node("n2", [600] * 5, promised=100)) == [
        "ask for at most 500m: n1 has the most for 6 h",
        (
            "resource locks withhold what it asks for on 1 of 2 nodes: "
            "`archimedes nodes NAME` says which and until when"
        ),
    ]


def test_what_blocks_nodes_is_said_first() -> None:
    stale = "usage data is older than 900 s, nothing new is promised"
    assert helps(node("n1", [5000] * 5, blocked=stale), node("n2", [5000] * 5, blocked=stale)) == [
        f"2 of 2 nodes promise nothing: {stale}"
    ]
    assert helps() == []


def test_room_that_has_come_since_is_said() -> None:
    assert helps(node("n1", [2000] * 5)) == [
        "n1 could promise 2000m for 6 h now: wait for the next attempt"
    ]


def test_an_ask_beyond_everything_gets_no_advice_that_cannot_help() -> None:
    assert helps(node("n1", [0] * 5), millicpu=9000) == []


def test_an_ask_that_no_node_can_ever_meet_is_not_told_to_wait() -> None:
    assert helps(node("n1", [2000] * 5), millicpu=0) == []


def test_the_newest_pod_of_the_name_counts() -> None:
    # A pod of the same name lived before, and was bound.
    records: list[Record] = [decision(uid="u2"), bound(uid="u1"), decision(uid="u1")]
    found = explanation(records, [])
    assert found is not None
    assert (found.uid, found.node, found.decisions) == ("u2", "", 1)


def test_a_failed_bind_is_named_until_one_succeeds() -> None:
    offered = decision(candidates=(Candidate("n1", 0.5, 3000),), rejected={}, offered=1)
    failed = explanation([bound("no room"), offered], [])
    assert failed is not None
    assert (failed.node, failed.bind_error) == ("", "no room")
    succeeded = explanation([bound(), bound("no room"), offered], [])
    assert succeeded is not None
    assert (succeeded.node, succeeded.bind_error) == ("n1", "")


def test_a_pod_that_has_ended_says_so_and_the_next_of_its_name_does_not() -> None:
    ended = End(time=1002.0, pod="default/p", uid="u1", node="n1")
    last = explanation([ended, bound(), decision()], [])
    assert last is not None
    assert (last.node, last.ended) == ("n1", True)
    # The end of the old one may be told after the new one was decided.
    following = explanation([ended, decision(uid="u2"), bound(), decision()], [])
    assert following is not None
    assert (following.uid, following.node, following.ended) == ("u2", "", False)
    assert explanation([ended], []) is None


def test_candidates_are_sorted_and_ranked_out_nodes_counted() -> None:
    pair = (Candidate("n1", 0.2, 1), Candidate("n2", 0.9, 2))
    found = explanation([decision(candidates=pair, offered=10, rejected={"x": 3})], [])
    assert found is not None
    assert [each.node for each in found.candidates] == ["n2", "n1"]
    assert found.ranked_out == 5  # 10 - 2 - 3


def test_nodes_that_are_left_out_as_hot_are_counted_apart() -> None:
    one = (Candidate("n1", 0.2, 1),)
    found = explanation([decision(candidates=one, offered=10, rejected={}, hot=4)], [])
    assert found is not None
    assert (found.hot, found.ranked_out) == (4, 5)  # 10 - 1 - 4


def test_advice_is_of_the_nodes_that_were_offered_where_these_are_known() -> None:
    full, empty = node("n1", [1000] * 5), node("n2", [6000] * 5)
    for refused, says in (
        (
            ("n1",),
            (
                "kube-scheduler offered it 1 of 2 nodes; of these:",
                "ask for at most 1000m: n1 has the most for 6 h",
            ),
        ),
        (
            (),  # too many to be named
            (
                "kube-scheduler offered it 1 of 2 nodes; of all 2 nodes:",
                "n2 could promise 6000m for 6 h now: if kube-scheduler offers it that",
            ),
        ),
        (("n9",), ()),  # is not known
    ):
        found = explanation([decision(offered=1, refused=refused)], [full, empty])
        assert found is not None
        assert found.would_help == says


def test_the_newest_preempt_call_is_told_beside_the_decision() -> None:
    newest, older = preempted(kept=0, nodes=()), preempted()
    found = explanation([newest, decision(), older], [])
    assert found is not None
    assert (found.preemption, found.decisions, found.offered) == (newest, 1, 2)


def test_a_pod_of_which_only_a_preempt_call_is_remembered_is_explained() -> None:
    found = explanation([preempted()], [node("n1", [2000] * 5)])
    assert found is not None
    assert (found.preemption, found.millicpu, found.decisions) == (preempted(), 2000, 0)
    assert found.would_help == ("n1 could promise 2000m for 6 h now: wait for the next attempt",)


def test_no_decision_is_no_explanation() -> None:
    assert explanation([], []) is None
    assert explanation([bound()], []) is None


# The commands


@asynccontextmanager
async def cluster(**settings: Any) -> AsyncIterator[tuple[World, str]]:  # noqa: ANN401
    """Two nodes with 6000m and 2000m reclaimable, and an extender that listens."""
    world = World(port=0, **settings)
    world.sync()
    world.forecast({"n1": 2.0, "n2": 6.0})
    async with listening(world.server) as url:
        yield world, url


async def run(*arguments: str) -> str:
    """What a command prints; its error is raised, as the command's main function sees it."""
    result = await asyncio.to_thread(CliRunner().invoke, assemble(), arguments)
    if result.exception is not None:
        raise result.exception
    return str(result.stdout)


async def place(world: World, name: str, ask: int) -> None:
    """Filter and bind a pod on n1."""
    pod = pod_json(name, ask)
    world.cluster.put_pod(as_pod(pod))
    world.filter(pod)
    assert await world.server.binder.bind(BindingArgs(name, "default", f"uid-{name}", "n1")) == ""


async def test_why_a_pod_is_where_it_is() -> None:
    async with cluster() as (world, url):
        await place(world, "p", 2500)
        said = await run("why", "default/p", "--url", url)
        assert "default/p (offline) asks 2500m for 24 h" in said
        assert "by model 7, snapshot" in said
        assert "2 nodes offered: 1 candidates, 0 ranked out, 1 refused" in said
        assert "asks 2500m for 24 h, more than is reclaimable" in said
        assert "6000m" in said
        assert "Bound to n1." in said
        found = json.loads(await run("why", "p", "--url", url, "--json"))
        assert found["node"] == "n1"
        assert found["rejected"] == {"asks 2500m for 24 h, more than is reclaimable": 1}


async def test_why_a_pod_waits() -> None:
    async with cluster() as (world, url):
        await place(world, "first", 3000)
        world.filter(pod_json("p", 4000))
        said = await run("why", "p", "--url", url)
        assert "No node could take it." in said
        # 6000 - 3000 on n1
        assert "ask for at most 3000m: n1 has the most for 24 h" in said
        assert "on n1, 1000m of what is promised would have to end" in said


async def test_why_a_pod_waits_that_may_run_on_one_node_only() -> None:
    async with cluster() as (world, url):
        await place(world, "first", 4000)
        world.filter(pod_json("p", 4000), ["n2"])
        said = await run("why", "p", "--url", url)
        assert "kube-scheduler offered it 1 of 2 nodes; of these:" in said
        assert "ask for at most 2000m: n2 has the most for 24 h" in said
        assert "n1" not in said


async def test_why_an_online_pod_is_where_it_is() -> None:
    async with cluster() as (world, url):
        world.filter(pod_json("web", cpu="1"))
        said = await run("why", "web", "--url", url)
        assert "kube-scheduler binds online pods itself" in said
        assert " hot" not in said


async def test_why_an_online_pod_was_not_offered_a_hot_node() -> None:
    async with cluster(candidates=1) as (world, url):
        world.forecast({"n1": 2.0, "n2": 7.5})  # of 8 cores; above 7.2 is hot
        world.filter(pod_json("web", cpu="1"))
        said = await run("why", "web", "--url", url)
        assert "2 nodes offered: 1 candidates, 0 ranked out, 1 left out as hot, 0 refused" in said


async def test_why_a_replica_is_not_beside_its_sibling() -> None:
    async with cluster(candidates=1) as (world, url):
        world.forecast({"n1": 2.0, "n2": 3.0})
        for name, node in {"a": "n1", "b": "n2"}.items():
            pod = owned(pod_json(name, cpu="1"), "ReplicaSet")
            assert world.filter(pod)["NodeNames"] == [node]
        said = await run("why", "b", "--url", url)
        assert "1 candidates, 1 ranked out" in said
        assert "for the spread" in said
        assert "+4.000" in said
        assert "+0.000" in await run("why", "a", "--url", url)


async def test_nodes_as_a_table_and_one_term_by_term() -> None:
    async with cluster() as (world, url):
        await place(world, "p", 2500)
        said = await run("nodes", "--url", url)
        row = next(line for line in said.splitlines() if "n1" in line)
        assert row.count("3500m") == len(HORIZONS)  # 6000 - 2500
        assert "2500m" in row
        said = await run("nodes", "n1", "--url", url)
        for text in ("allocatable CPU", "+8000m", "-2000m", "-2500m", "= available", "default/p"):
            assert text in said
        found = json.loads(await run("nodes", "n1", "--url", url, "--json"))
        assert sum(t["millicpu"] for t in found["arithmetic"][0]["terms"]) == 3500
        assert len(json.loads(await run("nodes", "--url", url, "--json"))) == 2


async def test_why_a_pod_may_or_may_not_displace_others() -> None:
    async with cluster() as (world, url):
        await place(world, "p", 6000)
        pod = pod_json("q", 6000)
        world.filter(pod)
        world.preempt(pod, {"n1": ["uid-p"], "n2": ["uid-p"]})
        said = await run("why", "q", "--url", url)
        assert "kube-scheduler proposed evictions on 2 nodes at" in said
        assert "they make room on 1: n1" in said
        assert "1     │ asks 6000m for 24 h, more than is reclaimable" in said
        world.preempt(pod, {"n2": ["uid-p"]})
        assert "none makes enough room" in await run("why", "q", "--url", url)


async def test_a_term_that_the_command_does_not_know_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from extender import inspection
    from extender.arithmetic import Arithmetic, Term

    def other(*_: object) -> tuple[Arithmetic, ...]:
        return (Arithmetic(1, (Term("sale", "kept for the sale", -77),), -77),)

    monkeypatch.setattr(inspection, "arithmetic", other)
    async with cluster() as (_, url):
        said = await run("nodes", "n1", "--url", url)
        assert "kept for the sale" in said
        assert "-77m" in said


@asynccontextmanager
async def saying(*answers: object) -> AsyncIterator[str]:
    """A server that says this of decisions and of nodes, one after the other."""
    left = [answer if isinstance(answer, bytes) else orjson.dumps(answer) for answer in answers]

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=left.pop(0))

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url(""))


@pytest.mark.parametrize("name", [(), ("n1",)])
async def test_what_no_extender_says_is_not_printed_as_json_either(name: tuple[str, ...]) -> None:
    for said in (b"<html>log in</html>", {"a": 1}, [{"node": "n1"}]):
        async with saying(said) as url:
            with pytest.raises(ArchimedesError, match="the answer is not an extender's"):
                await run("nodes", *name, "--url", url, "--json")


async def test_nodes_that_lack_a_horizon_are_named_in_one_sentence() -> None:
    lacking = NodeView("n1", 8.0, 60.0, "", 0, ())
    with pytest.raises(ArchimedesError, match="no figures of n1 for 6 h"):
        helps(lacking)
    async with saying(msgspec.to_builtins([node("n2", [1] * 5), lacking])) as url:
        with pytest.raises(ArchimedesError, match="no figures of n1 for 1 h"):
            await run("nodes", "--url", url)


async def test_what_a_terminal_would_obey_is_not_printed() -> None:
    async with cluster() as (world, url):
        reason = "\x1b[31mred\x1b]0;title\x07 [bold]as it is[/bold]\x9b2J"
        always = (0.0, 1e10)
        world.state.lock([Lock("sale", *always, 1.0, 0.0, None, "", reason)], {})
        said = await run("nodes", "n1", "--url", url)
        assert "[31mred]0;title [bold]as it is[/bold]2J" in said
        assert not {"\x1b", "\x07", "\x9b"} & set(said)
    odd = decision(rejected={"\x1b[2Jno room": 2})
    async with saying(msgspec.to_builtins([odd]), []) as url:
        said = await run("why", "p", "--url", url)
        assert "[2Jno room" in said
        assert "\x1b" not in said


def test_what_a_terminal_would_obey_is_not_printed_of_errors_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise ArchimedesError("it says \x1b[31mboom\n\tand more")

    monkeypatch.setattr("archimedes.cli.assemble", lambda: failing)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == "archimedes: it says [31mboom\n\tand more\n"


async def test_a_time_that_no_calendar_has_is_shown_as_a_number() -> None:
    async with cluster() as (world, url):
        world.state.lock([Lock("ever", 0.0, 1e300, 1.0, 0.0, None, "", "always")], {})
        said = await run("nodes", "n1", "--url", url)
        assert "1970-01-01 00:00:00Z" in said
        assert "1e+300 s" in said


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://[::1", "is no http:// or https:// address"),
        ("http://h:99999", "is no http:// or https:// address"),
        ("http://h:abc", "is no http:// or https:// address"),
        ("ftp://h", "is no http:// or https:// address"),
        ("http://..", "cannot be reached"),
        (f"http://{'a' * 300}", "cannot be reached"),
    ],
)
async def test_an_address_that_is_none_is_named_in_one_sentence(url: str, says: str) -> None:
    with pytest.raises(ArchimedesError, match=says):
        await run("nodes", "--url", url)


async def test_over_tls_with_the_callers_own_certificate(tmp_path: Path) -> None:
    servers, clients = Authority(), Authority()
    files = Files(tmp_path)
    files.write(servers, clients)
    certificate, key = clients.client("ops")
    for name, content in (("s", servers.certificate), ("c", certificate), ("k", key)):
        (tmp_path / name).write_bytes(content)
    async with cluster(tls=files.settings()) as (_, url):
        trust = ["--url", url, "--ca-file", str(tmp_path / "s")]
        mine = ["--cert-file", str(tmp_path / "c"), "--key-file", str(tmp_path / "k")]
        assert "2 nodes" in await run("nodes", *trust, *mine)
        for lacking in (trust, [*trust[:2], *mine]):
            with pytest.raises(ArchimedesError, match="cannot be reached"):
                await run("nodes", *lacking)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["why", "ghost"], "remembers no decision about default/ghost"),
        (["nodes", "ghost"], "knows no node 'ghost'"),
        (["nodes", "../decisions"], "knows no node"),
    ],
)
async def test_what_is_not_known_is_named(arguments: list[str], says: str) -> None:
    async with cluster() as (_, url):
        with pytest.raises(ArchimedesError, match=says):
            await run(*arguments, "--url", url)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--url", "http://127.0.0.1:1"], "cannot be reached"),
        (["--url", "127.0.0.1:8080"], "no http:// or https:// address"),
        (["--ca-file", "/nowhere"], "cannot be used"),
        (["--url", "http://127.0.0.1:1", "--cert-file", "/nowhere"], "cannot be used"),
    ],
)
async def test_what_cannot_be_reached_is_named(options: list[str], says: str) -> None:
    for command in (["why", "p"], ["nodes"]):
        with pytest.raises(ArchimedesError, match=says):
            await run(*command, *options)


async def test_another_servers_answer_is_no_extenders() -> None:
    from aiohttp import web

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=502, text="bad gateway")

    app = web.Application()
    app.add_routes([web.get("/v1/nodes", hello), web.get("/v1/decisions", broken)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    with pytest.raises(ArchimedesError, match="not an extender's"):
        await run("nodes", "--url", url)
    with pytest.raises(ArchimedesError, match="answers 502: bad gateway"):
        await run("why", "p", "--url", url)
    await runner.cleanup()
