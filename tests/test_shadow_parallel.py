"""Many replays at once, in processes or on Dask, give what they give one after the other."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import msgspec
import numpy as np
import pytest
from threadpoolctl import threadpool_info
from typer.testing import CliRunner

from archimedes.cli import assemble
from models.errors import SettingsError, TraceError
from models.policy import Policy
from models.trace import write_trace
from shadow import parallel
from shadow.compare import judge, replay_sides
from shadow.figures import figures
from shadow.options import ReplayOptions
from shadow.parallel import each, workers
from shadow.seeds import Candidate, Replays, replay_seeds
from tests.shadow_traces import recent, tidal_trace

OPTIONS = ReplayOptions(hours=6, refresh=3600)


def threads(_: str, __: int) -> tuple[int, set[int]]:
    time.sleep(0.2)  # so that another process takes the other call
    return os.getpid(), {pool["num_threads"] for pool in threadpool_info()}


def odd(_: str, number: int) -> int:
    if number % 2 == 0:
        raise TraceError(f"{number} is even.")
    return number


@pytest.fixture(scope="module")
def dask() -> Iterator[str]:
    """Address of a cluster of two workers."""
    from distributed import LocalCluster

    local = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with local as cluster:
        yield cluster.scheduler_address


def test_seeds_in_processes_and_on_dask_give_what_they_give_here(dask: str) -> None:
    replays = Replays(tidal_trace(jobs=20), (Candidate(recent()), Candidate(None)))
    steps: list[float] = []
    here = replay_seeds(replays, options=OPTIONS, seeds=3)
    spawned = replay_seeds(replays, options=OPTIONS, seeds=3, jobs=2, progress=steps.append)
    remote = replay_seeds(replays, options=OPTIONS, seeds=3, dask=dask)
    assert [ours.options.seed for ours, _ in here] == [0, 1, 2]
    for elsewhere in (spawned, remote):
        for sides, others in zip(here, elsewhere, strict=True):
            for ours, theirs in zip(sides, others, strict=True):
                assert figures(ours) == figures(theirs)
                assert np.array_equal(ours.runs.node, theirs.runs.node)
                assert ours.options == theirs.options
    assert steps == sorted(steps)
    assert steps[-1] == 1.0


def test_a_comparison_is_the_same_wherever_its_seeds_are_replayed(dask: str) -> None:
    trace, sides = tidal_trace(jobs=20), (Candidate(recent(), Policy(ceiling=0.8)), Candidate(None))
    here = replay_sides(trace, *sides, options=OPTIONS, seeds=2)
    found = msgspec.json.encode(judge(here))
    for where in ({"jobs": 2}, {"dask": dask}):
        elsewhere = replay_sides(trace, *sides, options=OPTIONS, seeds=2, **where)
        assert msgspec.json.encode(judge(elsewhere)) == found


def test_the_command_line_says_the_same_with_dask(dask: str, tmp_path: Path) -> None:
    write_trace(tidal_trace(jobs=20), tmp_path / "tidal")
    sides = ("--champion", "requests", "--challenger", "trailing-max-24h")
    shown = []
    for where in (("--jobs", "1"), ("--jobs", "2"), ("--dask", dask)):
        command = ["shadow", "compare", "--trace", str(tmp_path / "tidal"), *sides]
        options = ["--hours", "3", "--seeds", "2", "--json", *where]
        result = CliRunner().invoke(assemble(), command + options, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        shown.append(result.stdout)
    assert shown[0] == shown[1] == shown[2]


def test_each_process_computes_with_one_thread() -> None:
    found = each("", threads, [(0,), (1,), (2,), (3,)], jobs=2)
    assert len({pid for pid, _ in found} - {os.getpid()}) == 2
    assert all(counts == {1} for _, counts in found)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_is_carried_over(jobs: int) -> None:
    with pytest.raises(TraceError, match=r"^2 is even\.$"):
        each("", odd, [(1,), (2,), (3,)], jobs=jobs)
    assert each("", odd, [], jobs=jobs) == []


def remembered(_: str) -> int:
    return len(parallel._settled)


def test_dask_workers_forget_what_they_were_given(dask: str) -> None:
    for _ in range(2):
        assert each("", remembered, [()], jobs=1, dask=dask) == [1]


def test_an_error_is_carried_over_from_dask(dask: str) -> None:
    with pytest.raises(TraceError, match=r"^2 is even\.$"):
        each("", odd, [(1,), (2,), (3,)], jobs=1, dask=dask)


def test_a_dask_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadow.parallel._PATIENCE", "1s")
    with pytest.raises(SettingsError, match="no Dask scheduler answers at tcp://127"):
        each("", odd, [(1,)], jobs=1, dask="tcp://127.0.0.1:1")


def test_a_dask_scheduler_that_wants_a_certificate_is_named() -> None:
    with pytest.raises(SettingsError, match=r"tls://127.0.0.1:1"):
        each("", odd, [(1,)], jobs=1, dask="tls://127.0.0.1:1")


def mortal_parent(pipe: Connection) -> None:
    """A command whose process dies while its workers live; tells their ids first."""
    with workers("", odd, 2) as crew:
        crew.executor.submit(crew.call, 1).result()
        pipe.send([child.pid for child in multiprocessing.active_children()])
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_with_a_parent_that_was_killed() -> None:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    parent = spawn.Process(target=mortal_parent, args=(theirs,))
    parent.start()
    watched = [os.pidfd_open(pid) for pid in ours.recv()]
    parent.join()
    assert watched
    for worker in watched:
        ended, _, _ = select.select([worker], [], [], 60)
        assert ended, "a worker outlived its parent"
        os.close(worker)
