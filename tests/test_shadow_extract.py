"""Recorded production as a trace: nobody is lost, usage is what was measured, promises the same."""

from __future__ import annotations

import asyncio
import math
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from extender.decision_log import Binding, End, read_log
from extender.recording import Encoder, Entry, Header, OnlinePod, Refresh, frame
from models.errors import ArchimedesError
from models.grid import WINDOW
from models.trace import Trace, read_trace, usage_grid
from shadow.cli import app
from shadow.extract import Extracted, extract
from shadow.figures import figures
from shadow.lives import Lives, numbered, shared
from shadow.options import ReplayOptions
from shadow.recorded import RecordedStream
from shadow.replay import replay
from shadow.result import Ending
from tests.recorded_world import (
    ASK,
    BEGIN,
    CHANGE,
    FIRST_JOB,
    JOBS,
    LASTS,
    ONLINE,
    REFRESHES,
    SURGE,
    Recorded,
    champion,
    usage,
)
from tests.test_recording import refresh


@pytest.fixture(name="production", scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Ten hours of production, with log and recording on disk."""
    production = Recorded(tmp_path_factory.mktemp("production") / "decisions.jsonl")
    asyncio.run(production.run())
    return production


@pytest.fixture(name="log")
def copied(production: Recorded, tmp_path: Path) -> Path:
    """The log of production; a test may damage it and the recording beside it."""
    shutil.copytree(production.log.parent, tmp_path / "production")
    return tmp_path / "production" / production.log.name


@pytest.fixture(name="trace")
def written(log: Path, tmp_path: Path) -> Trace:
    """The trace that the command wrote, read again."""
    run("--decisions", str(log), str(tmp_path / "trace"))
    return read_trace(tmp_path / "trace")


def run(*arguments: str) -> str:
    """Stdout of the command."""
    result = CliRunner().invoke(app, ["extract", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def problem(log: Path, out: Path) -> str:
    """The one sentence of a command that fails and writes nothing."""
    result = CliRunner().invoke(app, ["extract", "--decisions", str(log), str(out)])
    assert isinstance(result.exception, ArchimedesError), result.output
    assert not out.exists()
    sentence = str(result.exception)
    assert "\n" not in sentence
    return sentence


def at(window: int) -> int:
    """When the extender refreshed and decided in a window."""
    return BEGIN + window * WINDOW + 20


def test_every_pod_that_the_log_saw_is_accounted_for(production: Recorded, log: Path) -> None:
    ends = [record for record in read_log(log) if isinstance(record, End)]
    trace, found = extract(log, "production")
    assert len(production.placed) == JOBS
    assert found == Extracted(
        nodes=5,
        online=9,  # eight names, of which one had two pods
        windows=REFRESHES,
        offline=JOBS + 1,
        ended=len(ends),
        running=JOBS - len(ends),
        waiting=1,  # the huge one
    )
    assert 0 < found.running < found.ended
    jobs = trace.pods.rows_by_key("pod", named=True, unique=True)
    for number in range(JOBS):
        job = jobs[f"default/job-{number}"]
        assert job["start"].timestamp() == at(FIRST_JOB + number)
        assert job["cpu_request"] == ASK / 1000
    for end in ends:
        job = jobs[end.pod]
        assert (job["end"] - job["start"]).total_seconds() == LASTS * WINDOW
    others = {f"default/{name}" for name in [*production.placed, "huge"]} - {e.pod for e in ends}
    # What has not ended is expected to last for an hour, as it said.
    assert {(jobs[pod]["end"] - jobs[pod]["start"]).total_seconds() for pod in others} == {3600.0}


def test_a_nodes_pods_use_what_was_measured_on_it(trace: Trace) -> None:
    assert trace.usage is not None
    grid, truth = usage_grid(trace), usage()
    homes = dict(zip(trace.pods["pod"], trace.pods["node"], strict=True))
    assert (grid.start, grid.windows) == (BEGIN - 2 * WINDOW, REFRESHES)  # Prometheus lags
    for node in ("n1", "n2", "n3", "n4", "n5"):
        mine = [row for row, pod in enumerate(grid.pods) if homes[pod] == node]
        real = [row for row, name in enumerate(ONLINE) if name.startswith(node)]
        measured = truth.cpu[real, 22 : 22 + REFRESHES].sum(axis=0)
        there = np.isfinite(grid.cpu[mine]).any(axis=0)
        np.testing.assert_allclose(
            np.nansum(grid.cpu[mine], axis=0)[there], measured[there], rtol=1e-6
        )
        lives = {"n4": CHANGE, "n5": REFRESHES - CHANGE - 2 - 4}  # 4 were not observed
        assert there.sum() == lives.get(node, REFRESHES)
    n2 = {pod: grid.cpu[row, 0] for row, pod in enumerate(grid.pods) if homes[pod] == "n2"}
    assert n2["default/n2-a"] == pytest.approx(3 * n2["default/n2-b"])  # 3 cores and 1 requested


def test_nodes_and_pods_come_and_go(trace: Trace) -> None:
    assert trace.nodes is not None
    nodes = trace.nodes.rows_by_key("node", named=True, unique=True)
    assert sorted(nodes) == ["n1", "n2", "n3", "n4", "n5"]
    assert nodes["n4"]["end"].timestamp() == nodes["n5"]["start"].timestamp() == at(CHANGE)
    assert (nodes["n4"]["start"], nodes["n5"]["end"], nodes["n1"]["start"]) == (None, None, None)
    pods = trace.pods.rows_by_key("pod", named=True, unique=True)
    last = at(REFRESHES - 1)
    lives = {
        pod: tuple(pods[f"default/{pod}"][bound].timestamp() for bound in ("start", "end"))
        for pod in ("n1-a", "n4-a", "n5-a", "n1-b#1", "n1-b")
    }
    days = BEGIN - 9 * 86_400
    assert lives == {
        "n1-a": (days, last),
        "n4-a": (days, at(CHANGE)),
        "n5-a": (at(CHANGE), last),
        "n1-b#1": (days, at(CHANGE)),
        "n1-b": (at(CHANGE), last),
    }


def test_a_replay_promises_what_production_promised(
    production: Recorded, log: Path, trace: Trace
) -> None:
    result = replay(trace, champion(), options=ReplayOptions(refresh=WINDOW, candidates=4))
    names = [name.removeprefix("default/") for name in result.pods.names]
    jobs = [pod for pod in result.runs.pod if result.pods.offline[pod]]
    assert sorted(names[pod] for pod in jobs) == sorted(production.placed)
    ends = {record.uid: record.time for record in read_log(log) if isinstance(record, End)}
    bound = {record.uid: record.time for record in read_log(log) if isinstance(record, Binding)}
    ran = sum(ends.get(uid, result.stop) - since for uid, since in bound.items())
    promised = ran / 3600 * ASK / 1000
    found = figures(result)
    assert found.reclaimed_core_hours == pytest.approx(promised, rel=0.02)
    waited = {uid: since for uid, since in bound.items() if since > at(FIRST_JOB + int(uid[8:]))}
    assert len(waited) > 3  # full for a while: some waited for others to end, here as there
    assert np.count_nonzero(result.waited[result.pods.offline] > 0) == len(waited) + 1


def test_a_pod_is_evicted_from_a_node_that_runs_hot_and_tried_again(trace: Trace) -> None:
    options = ReplayOptions(refresh=WINDOW, candidates=4, evict=True)
    result = replay(trace, champion(), options=options)
    (evicted,) = np.flatnonzero(result.runs.ending == Ending.EVICTED)
    assert result.fleet.names[result.runs.node[evicted]] == "n2"
    assert result.runs.end[evicted] == BEGIN + (SURGE + 1) * WINDOW  # when that window is complete
    assert np.count_nonzero(result.runs.pod == result.runs.pod[evicted]) == 2


def test_a_log_without_ends_takes_the_expected_horizon(log: Path, tmp_path: Path) -> None:
    lines = [line for line in log.read_bytes().splitlines(keepends=True) if b'"end"' not in line]
    log.write_bytes(b"".join(lines))
    found = msgspec.json.decode(
        run("--decisions", str(log), str(tmp_path / "trace"), "--json"), type=Extracted
    )
    assert (found.ended, found.running, found.assumed) == (0, JOBS, JOBS)
    jobs = read_trace(tmp_path / "trace").pods.filter(pl.col("tier") == "offline")
    assert set((jobs["end"] - jobs["start"]).dt.total_seconds()) == {3600}


def test_a_log_that_was_rotated_away_leaves_ends_of_unknown_pods(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(line for line in lines if b"job-0" not in line or b'"end"' in line))
    _, found = extract(log, "production")
    assert (found.offline, found.unseen) == (JOBS, 1)


def segment(log: Path) -> Path:
    """The one segment of the recording."""
    (found,) = Path(f"{log}.recording").iterdir()
    return found


def write(log: Path, *entries: Entry) -> None:
    """Record these instead of what is there."""
    segment(log).write_bytes(frame(entries))


def test_a_recording_without_usage_is_a_trace_without(log: Path) -> None:
    pods = {"a/b": OnlinePod("a/b", "n1", 1.0, BEGIN - 60.0, "a/Pod/b")}
    seen = [replace(refresh(BEGIN + 300.0 * at), pods=pods) for at in range(3)]
    encoder = Encoder()
    write(log, Header(format=1, advertise_share=1.0), *map(encoder.refresh, seen))
    trace, found = extract(log, "old")
    assert (trace.usage, found.windows, found.online) == (None, 0, 1)


def test_a_damaged_end_of_a_segment_is_told(log: Path) -> None:
    whole = segment(log).read_bytes()
    segment(log).write_bytes(whole[:-1])
    trace, found = extract(log, "production")
    assert found.cut == 1
    assert 0 < found.windows <= REFRESHES
    assert trace.pods.height == found.online + found.offline


def test_what_is_recorded_while_a_trace_is_made_was_not_cut(log: Path) -> None:
    whole = segment(log).read_bytes()
    stream = RecordedStream(segment(log).parent, 0.0)
    assert list(stream.until(math.inf, ""))
    segment(log).write_bytes(whole + frame([Encoder().refresh(refresh(BEGIN + 9e5))]))
    assert stream.cut == 0


def test_bad_input_is_named(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    assert "nowhere.jsonl does not exist" in problem(tmp_path / "nowhere.jsonl", out)
    write(log, Header(format=9, advertise_share=1.0))
    assert "is not of this version (format 9, not 1)" in problem(log, out)
    segment(log).write_bytes(b"nothing of ours")
    assert "holds no refresh" in problem(log, out)
    segment(log).unlink()
    assert "holds no refresh" in problem(log, out)
    Path(f"{log}.recording").rmdir()
    assert "decisions.jsonl.recording does not exist" in problem(log, out)
    log.write_text('{"kind": "other"}\n')
    assert "is no record of a decision" in problem(log, out)


def test_a_folder_that_holds_something_is_kept(log: Path, trace: Trace, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["extract", "--decisions", str(log), str(tmp_path / trace.name)]
    )
    assert "is not empty" in str(result.exception)
    run("--decisions", str(log), str(tmp_path / trace.name), "--force")


def test_a_node_that_comes_back_is_another_one() -> None:
    lives, pods = Lives(()), {"a/b": OnlinePod("a/b", "n1", 1.0, BEGIN - 60.0, "a/Pod/b")}
    known: Refresh = replace(refresh(BEGIN), pods=pods, usage=np.array([0.5]))
    gone = replace(known, nodes=(), allocatable=np.zeros(0), usage=np.zeros(0))
    for number, seen in enumerate((known, known, gone, known)):
        lives.see(replace(seen, time=BEGIN + 300.0 * number))
    assert numbered([node.name for node in lives.nodes]) == ["n1#1", "n1"]
    assert [(node.start, node.end) for node in lives.nodes] == [
        (-np.inf, BEGIN + 600.0),
        (BEGIN + 900.0, np.inf),
    ]
    # The pod was bound all the time; it can run only while its node is there.
    assert [(pod.start, pod.end) for pod in lives.pods] == [
        (BEGIN - 60.0, BEGIN + 600.0),
        (BEGIN + 900.0, np.inf),
    ]


def test_an_online_pod_that_waits_begins_when_it_is_bound() -> None:
    lives, waits = Lives(()), OnlinePod("a/b", "", 1.0, np.inf, "a/Pod/b")
    states = [waits, OnlinePod("a/b", "n1", 1.0, np.inf, "a/Pod/b")]
    states += [OnlinePod("a/b", "n1", cores, BEGIN + 310.0, "a/Pod/b") for cores in (1.0, 2.0)]
    for number, pod in enumerate(states):
        lives.see(replace(refresh(BEGIN + 300.0 * number), pods={"a/b": pod}))
    (life,) = lives.pods
    assert (life.start, life.end, life.pod.request) == (BEGIN + 300.0, np.inf, 2.0)


def test_shares_add_up_to_what_nodes_used() -> None:
    rng = np.random.default_rng(3)
    used, node = rng.uniform(0, 8, 20), rng.integers(0, 20, 200)
    request = rng.choice([0.0, 0.5, 4.0], 200) * (node > 4)  # on five nodes nobody requests
    cores = shared(used, node, request)
    for row in set(node.tolist()):
        mine, asked = cores[node == row], request[node == row]
        assert mine.sum() == pytest.approx(used[row])
        even = np.full(len(mine), 1 / len(mine))
        shares = asked / asked.sum() if asked.any() else even
        np.testing.assert_allclose(mine, used[row] * shares)
