"""How long runs last: which ones count, what follows for the next, and how it survives."""

import itertools

import msgspec
import pytest

from extender.ports import Feed
from extender.runs import (
    FEWEST,
    KEPT,
    MARGIN,
    WORKLOADS,
    Run,
    Runs,
    finished_run,
)
from extender.telemetry import Telemetry
from extender.watchers import run_feed
from models.kube.types import FinishedPod
from models.policy import HORIZONS
from tests.extender_world import RESOURCE, Json, World, as_pod, pod_json

JOB = "default/CronJob/nightly"


def finished(
    seconds: int = 1800, phase: str = "Succeeded", ask: int | None = 500, **metadata: object
) -> Json:
    """A pod of the nightly job that ran from 10:00:00 on."""
    pod = pod_json("nightly-29384400-x", ask, phase=phase)
    owner = {"kind": "Job", "name": "nightly-29384400", "controller": True}
    pod["metadata"] |= {"ownerReferences": [owner], **metadata}
    minutes, rest = divmod(seconds, 60)
    ended = {"terminated": {"exitCode": 0, "finishedAt": f"2026-11-25T10:{minutes:02}:{rest:02}Z"}}
    earlier = {"terminated": {"exitCode": 0, "finishedAt": "2026-11-25T10:00:00Z"}}
    pod["status"] |= {
        "startTime": "2026-11-25T10:00:00Z",
        "containerStatuses": [{"name": "a", "state": earlier}, {"name": "c", "state": ended}],
    }
    return pod


def run_of(pod: Json) -> tuple[str, Run] | None:
    return finished_run(msgspec.convert(pod, FinishedPod), RESOURCE)


def filled(seconds: list[float]) -> Runs:
    """Runs of one job that ended one after the other."""
    runs = Runs()
    for at, length in enumerate(seconds):
        runs.add(JOB, Run(float(at), length))
    return runs


# Which runs count


def test_a_run_lasts_from_its_start_until_its_last_container_ended() -> None:
    # 10:00:00Z is 1795600800 s since the epoch
    assert run_of(finished(1800)) == (JOB, Run(1795602600.0, 1800.0))


@pytest.mark.parametrize(
    "pod",
    [
        finished(phase="Failed"),
        finished(phase="Running"),
        finished(deletionTimestamp="2026-11-25T10:20:00Z"),  # told to go, and obeyed with code 0
        finished(ask=None),  # an online pod
        {**finished(), "status": {"phase": "Succeeded"}},  # nobody says when
        {**finished(), "status": {**finished()["status"], "startTime": "tomorrow"}},
        {**finished(), "status": {**finished()["status"], "startTime": "2026-11-25T11:00:00Z"}},
        {"metadata": None, "spec": None, "status": None},
    ],
    ids=["failed", "running", "told to go", "online", "no times", "no time", "backwards", "empty"],
)
def test_what_is_no_run_that_ended_by_itself(pod: Json) -> None:
    assert run_of(pod) is None


# What follows


def test_too_few_runs_say_nothing() -> None:
    assert filled([60.0] * (FEWEST - 1)).expected(JOB) is None
    assert filled([60.0] * FEWEST).expected(JOB) == 60.0 * MARGIN
    assert Runs().expected(JOB) is None


def test_the_longest_of_the_last_runs_counts() -> None:
    assert filled([9000.0] + [60.0] * (KEPT - 1)).expected(JOB) == 9000.0 * MARGIN
    assert filled([9000.0] + [60.0] * KEPT).expected(JOB) == 60.0 * MARGIN


def test_the_same_runs_in_any_order_and_again_are_the_same() -> None:
    reported = [Run(float(end), 100.0 + end) for end in range(6)]
    for order in itertools.islice(itertools.permutations(reported), 0, None, 100):
        runs = Runs()
        for run in (*order, *order[:3]):
            runs.add(JOB, run)
        assert runs.record() == {JOB: tuple(reported)}


def test_an_old_run_that_is_reported_late_pushes_no_newer_one_out() -> None:
    runs = filled([60.0] * KEPT)
    runs.add(JOB, Run(-1.0, 9000.0))
    assert runs.expected(JOB) == 60.0 * MARGIN


def test_the_number_of_workloads_is_bounded() -> None:
    runs = Runs()
    for number in range(WORKLOADS + 1):
        runs.add(f"w{number}", Run(0.0, 60.0))
        runs.add("busy", Run(float(number), 60.0))
    assert len(runs) == WORKLOADS
    assert set(runs.record()).isdisjoint({"w0", "w1"})
    assert "busy" in runs.record()


# In the server


def nightly(name: str = "nightly-29385840-y", **fields: object) -> Json:
    """The next night's pod, which says nothing of its duration."""
    pod = pod_json(name, 500, **fields)  # type: ignore[arg-type]
    owner = {"kind": "Job", "name": "nightly-29385840", "controller": True}
    pod["metadata"]["ownerReferences"] = [owner]
    return pod


def hours(world: World, pod: Json) -> int:
    """The horizon of a pod's promise or hold."""
    entry = world.state.ledger.get(pod["metadata"]["uid"])
    assert entry is not None
    return HORIZONS[entry.horizon]


@pytest.fixture
def world() -> World:
    made = World()
    made.sync()
    made.forecast(2.0)
    return made


def report(world: World, times: int, seconds: int = 1800) -> Feed[FinishedPod]:
    """Report runs as the API server does."""
    feed = run_feed(world.state, RESOURCE)
    for at in range(times):
        feed.put(msgspec.convert(finished(seconds + at), FinishedPod))
    return feed


def test_a_workload_that_is_known_gets_the_horizon_of_its_runs(world: World) -> None:
    pod = nightly()
    world.filter(pod)
    assert hours(world, pod) == 24
    feed = report(world, FEWEST)
    world.filter(pod)
    assert hours(world, pod) == 1  # 1804 s x 1.5 = 2706 s
    feed.remove(msgspec.convert(finished(), FinishedPod))
    feed.retain(())  # the API server forgets finished pods, their runs stay true
    world.filter(pod)
    assert hours(world, pod) == 1


def test_what_a_pod_says_itself_counts_more(world: World) -> None:
    report(world, FEWEST)
    for fields in (
        {"annotations": {"archimedes.dev/expected-duration": "5h"}},
        {"activeDeadlineSeconds": 5 * 3600},
    ):
        pod = nightly(**fields)
        world.filter(pod)
        assert hours(world, pod) == 6


def test_a_pod_that_is_bound_is_not_decided_again(world: World) -> None:
    pod = nightly(node="n1")
    world.cluster.put_pod(as_pod(pod))
    report(world, FEWEST)
    world.cluster.put_pod(as_pod(nightly(node="n1", phase="Running")))
    assert hours(world, pod) == 24


def test_the_metric_counts_workloads(world: World) -> None:
    from extender.inspection import observe

    report(world, 1)
    telemetry = Telemetry()
    observe(world.state, telemetry, world.now)
    assert telemetry.registry.get_sample_value("archimedes_workloads_timed") == 1.0
