"""Online ranking by hour, the hot-node guard, and nodes that predecessors left."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from extender.decide import NOTHING_KNOWN, Ask, Habit, decide, scores
from extender.decision_log import Decision, read_log
from extender.homes import Homes
from extender.recording import Recorded
from extender.snapshot import Reason, Snapshot
from models.arrays import Floats32
from models.habits import NO_HABITS, Habits, Rhythm
from models.policy import HORIZONS, Policy
from models.rolling import Forecast
from shadow.cluster import Cluster, Fleet
from shadow.kube_scheduler import Request
from tests.extender_world import PLAIN, World, as_pod, pod_json, rebuilt_json
from tests.test_decide import snapshot
from tests.test_recording import entries

ONLINE = Ask(1000, 0, offline=False)
HOURLY = Policy(balance_weight=0.0, peak_hour_weight=1.0)


def peak_at(hour: int, high: float, low: float = 0.0) -> Floats32:
    """A profile that is high in one hour."""
    profile = np.full(24, low, np.float32)
    profile[hour] = high
    return profile


def day_and_night() -> Snapshot:
    """Two nodes of 8 cores with a peak of 4: by day (hour 14) and by night (hour 2)."""
    of = snapshot([4000, 4000], forecast=[4.0, 4.0])
    return replace(of, profile=np.stack([peak_at(14, 4.0, 1.0), peak_at(2, 4.0, 1.0)], axis=1))


def test_a_pod_goes_where_the_peak_is_at_another_hour() -> None:
    of, rows = day_and_night(), np.arange(2)
    # day: 1 - (4 + 2)/8 = 0.25; night: the highest hour is max(4 + 0, 1 + 2) = 4, 1 - 4/8 = 0.5
    found = scores(of, rows, ONLINE, HOURLY, Habit(peak_at(14, 2.0)))
    assert found.tolist() == pytest.approx([0.25, 0.5])
    # An unknown workload is flat at its request: 1 - (4 + 1)/8 on both
    assert scores(of, rows, ONLINE, HOURLY).tolist() == pytest.approx([0.375, 0.375])
    old = Policy(peak_hour_weight=0.0)
    assert scores(of, rows, ONLINE, old, Habit(peak_at(14, 2.0))).tolist() == [0.375, 0.375]


def test_narrowing_uses_the_same_scores() -> None:
    verdicts = decide(day_and_night(), np.arange(2), ONLINE, HOURLY, 1, Habit(peak_at(14, 2.0)))
    assert verdicts.passed.tolist() == [1]


def test_hot_nodes_are_left_out_while_a_known_cool_one_remains() -> None:
    # 8 x 0.9 = 7.2: 6.3 + 1 is hot, 6 + 1 is not; the third is hot by its usage now
    of = snapshot([0] * 3, forecast=[6.3, 6.0, 1.0])
    of = replace(of, usage=np.array([np.nan, 7.2, 7.3]))
    guarded, all_hot = (
        decide(of, np.array(rows), ONLINE, Policy(), 0) for rows in ([0, 1, 2], [0, 2])
    )
    assert (guarded.passed.tolist(), guarded.hot) == ([1], 2)
    assert (all_hot.passed.tolist(), all_hot.hot) == ([0, 1], 0)
    # An unknown node may be hot as well: nothing is left out for its sake.
    assert decide(of, np.array([0, -1]), ONLINE, Policy(), 0).passed.tolist() == [0, 1]
    narrowed = decide(of, np.array([0, 2]), ONLINE, Policy(), 1)
    assert narrowed.passed.tolist() == [1]  # all hot: ranked by what is left


def test_an_offline_pod_avoids_a_node_that_is_hot_now() -> None:
    of = replace(snapshot([4000, 4000]), usage=np.array([7.3, np.nan]))
    found = scores(of, np.arange(2), Ask(1000, 0, offline=True), Policy())
    assert found[1] - found[0] == pytest.approx(1.0)
    wide = decide(of, np.arange(2), Ask(1000, 0, offline=True), Policy(), 0)
    assert (wide.reason == Reason.FITS).all()


@pytest.mark.parametrize("habit", [NOTHING_KNOWN, Habit(peak_at(3, 2.0), home=0)])
def test_broken_figures_and_nodes_without_cpu_spoil_nothing(habit: Habit) -> None:
    of = snapshot([0, 0], forecast=[np.nan, 2.0])
    none = snapshot([0, 0], cores=0.0)
    for view in (of, none):
        verdicts = decide(view, np.array([0, 1, -1]), ONLINE, Policy(), 0, habit)
        assert np.isfinite(verdicts.score).all()
        assert len(verdicts.passed) == 3
    assert decide(snapshot([0]), np.arange(1), ONLINE, Policy(), 0, habit).passed.tolist() == [0]
    assert scores(snapshot([]), np.array([-1]), ONLINE, Policy(), habit).tolist() == [0.0]


def test_the_left_node_is_preferred_by_its_weight() -> None:
    of = snapshot([0, 0], forecast=[5.0, 1.0])
    found = scores(of, np.array([1, 0]), ONLINE, Policy(rebuild_weight=3.0), Habit(home=0))
    without = scores(of, np.array([1, 0]), ONLINE, Policy(rebuild_weight=3.0))
    assert (found - without).tolist() == pytest.approx([0.0, 3.0])


def everywhere(_: str) -> bool:
    return True


def test_each_left_node_is_given_to_one_successor() -> None:
    homes = Homes()
    homes.leave("w", "a", "n1", 0.0)
    homes.leave("w", "b", "n2", 1.0)
    assert homes.claim("w", "c", everywhere, 2.0) == "n2"
    assert homes.claim("w", "c", everywhere, 3.0) == "n2"
    assert homes.claim("w", "d", everywhere, 3.0) == "n1"
    assert homes.claim("w", "e", everywhere, 3.0) == ""
    assert homes.claim("other", "e", everywhere, 3.0) == ""
    homes.settle("w", "c", "n9")  # it went elsewhere: n2 is free for another
    assert homes.claim("w", "e", everywhere, 3.0) == "n2"
    homes.settle("w", "e", "n2")
    assert len(homes) == 1
    assert homes.claim("w", "f", everywhere, 3.0) == ""


def test_left_nodes_are_forgotten_in_time_and_in_number() -> None:
    homes = Homes()
    homes.leave("w", "a", "n1", 0.0)
    assert homes.claim("w", "c", everywhere, 3600.0) == ""
    for at in range(100):
        homes.leave("w", str(at), f"n{at}", 0.0)
    assert len(homes) == 64
    for at in range(5000):
        homes.leave(f"w{at}", str(at), "n", 0.0)
    assert len(homes) == 4096


def test_the_server_offers_the_left_node() -> None:
    world = World(("n1", "n2", "n3"), candidates=1)
    world.sync()
    world.forecast({"n1": 1.0, "n2": 2.0, "n3": 1.5})
    feed = world.state.pod_feed()
    feed.put(as_pod(rebuilt_json("db-0", node="n2")))
    feed.remove(as_pod(rebuilt_json("db-0", node="n2")))
    assert world.filter(rebuilt_json("db-1"))["NodeNames"] == ["n2"]
    ranked = {
        one["Host"]: one["Score"] for one in world.prioritize(rebuilt_json("db-1"), ["n1", "n2"])
    }
    assert ranked == {"n1": 0, "n2": 10}
    assert world.filter(rebuilt_json("db-2"))["NodeNames"] == ["n1"]
    assert world.filter(pod_json("other", cpu="1"))["NodeNames"] == ["n1"]


def test_pods_that_ask_for_no_rebuilding_displace_nobodys_left_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("extender.homes._WORKLOADS", 3)
    world = World(("n1", "n2"), candidates=1)
    world.sync()
    world.forecast({"n1": 1.0, "n2": 2.0})
    world.cluster.put_pod(as_pod(rebuilt_json("db-0", node="n2")))
    world.cluster.delete_pod("default", "db-0")
    for number in range(5):  # each is a workload of its own
        world.cluster.put_pod(as_pod(pod_json(f"job-{number}", 1, node="n1")))
        world.cluster.delete_pod("default", f"job-{number}")
    assert world.filter(rebuilt_json("db-1"))["NodeNames"] == ["n2"]


def test_an_update_of_a_pod_that_stays_takes_no_node_that_another_has_left() -> None:
    world = World(("n1", "n2"), candidates=1)
    world.sync()
    world.forecast({"n1": 1.0, "n2": 2.0})
    feed = world.state.pod_feed()
    for name in ("db-0", "db-1"):
        feed.put(as_pod(rebuilt_json(name, node="n2")))
    feed.remove(as_pod(rebuilt_json("db-0", node="n2")))
    feed.put(as_pod(rebuilt_json("db-1", node="n2")))
    assert world.filter(rebuilt_json("db-2"))["NodeNames"] == ["n2"]


def known(workload: str, profile: Floats32) -> Habits:
    """Habits of one workload."""
    return Habits({workload: 0}, np.array([float(profile.max())]), profile[None])


def test_server_and_replay_score_the_same_state_equally() -> None:
    """Two nodes with profiles, a pod of a known and one of an unknown workload placed since."""
    profile = peak_at(14, 2.5, 0.5)
    shape = np.stack([peak_at(14, 1.0, 0.3), peak_at(2, 1.0, 0.5)]).astype(np.float64)
    habits = known("default/Pod/known", profile)
    rhythm = Rhythm(np.array([1.0, 2.0]), shape, habits)
    peaks = np.repeat(np.array([[3.0], [2.0]]), len(HORIZONS), axis=1)
    world = World(("n1", "n2"))
    world.sync()
    world.state.serve(
        world.state.capture(),
        Forecast(peaks, peaks * 0.8),
        np.full(2, world.now),
        "7",
        PLAIN,
        rhythm,
    )
    feed = world.state.pod_feed()
    feed.put(as_pod(pod_json("known", cpu="4", node="n1")))
    feed.put(as_pod(pod_json("new", cpu="1", node="n2")))
    server = world.state.snapshot(world.now)

    fleet = Fleet(("n1", "n2"), np.full(2, 8000), np.full(2, 2**35))
    cluster = Cluster(fleet, PLAIN, 110, forecasting=True)
    cluster.refresh(peaks, peaks * 0.8, rhythm)
    cluster.add(0, Request(4000, 0, 0), habits.of("default/Pod/known"))
    cluster.add(1, Request(1000, 0, 0), NO_HABITS.of("default/Pod/new"))
    replayed = cluster.snapshot(0, "7", offline=True)

    # n1: 3 + 2.5, the highest window of a sibling, not the 4 that it requests; n2: 2 + 1
    assert server.forecast[:, -1].tolist() == [5.5, 3.0]
    assert server.profile[14].tolist() == [5.5, 2.0]  # 3 x 1 + 2.5; 2 x 0.5 + 1
    for field in ("forecast", "expected", "profile", "usage", "free"):
        np.testing.assert_array_equal(getattr(server, field), getattr(replayed, field))
    for ask in (ONLINE, Ask(1000, 1, offline=True)):
        for habit in (NOTHING_KNOWN, Habit(profile)):
            ours = scores(server, np.arange(2), ask, Policy(), habit)
            theirs = scores(replayed, np.arange(2), ask, Policy(), habit)
            np.testing.assert_array_equal(ours, theirs)


def test_a_decision_by_hour_is_recorded_and_made_again(tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    world = World(("n1", "n2"), decision_log=str(log))
    world.sync()
    profile = peak_at(14, 2.0, 0.5)
    shape = np.stack([peak_at(14, 1.0, 0.3), peak_at(2, 1.0, 0.5)]).astype(np.float64)
    rhythm = Rhythm(np.array([7.9, 2.0]), shape, known("default/StatefulSet/db", profile))
    peaks = np.repeat(np.array([[3.0], [3.0]]), len(HORIZONS), axis=1)
    capture = world.state.capture()
    forecast, newest = Forecast(peaks, peaks * 0.8), np.full(2, world.now)
    world.state.serve(capture, forecast, newest, "7", PLAIN, rhythm)
    feed = world.state.pod_feed()
    world.filter(rebuilt_json("db-1"))
    feed.put(as_pod(rebuilt_json("db-0", node="n2")))  # n2's row alone changes
    feed.remove(as_pod(rebuilt_json("db-0", node="n2")))
    world.now += 1.0
    world.filter(rebuilt_json("db-2"))
    assert world.server.recorder is not None
    world.server.recorder.close()
    world.server.decisions.close()
    logged = [record for record in read_log(log) if isinstance(record, Decision)]
    made = [one for one in entries(Path(f"{log}.recording")) if isinstance(one, Recorded)]
    assert [one.habit.home for one in made] == [-1, 1]
    for decision, recorded in zip(logged, made, strict=True):
        assert recorded.habit.profile is not None
        assert recorded.habit.profile.tolist() == profile.tolist()
        verdicts = recorded.again()
        again = verdicts.score[verdicts.passed].tolist()
        assert again == [candidate.score for candidate in decision.candidates]
    # n1 is hot by its usage now, so n2 alone passes: at 14 h 3 x 0.5 + 2.0 = 3.5, then + 2 placed
    assert [one.snapshot.profile[14].tolist() for one in made] == [[3.0, 1.5], [3.0, 3.5]]


def test_what_was_added_goes_with_the_refresh_that_knows_it() -> None:
    world = World(("n1",))
    world.sync()
    world.forecast(2.0)
    feed = world.state.pod_feed()
    feed.put(as_pod(pod_json("early", cpu="1", node="n1")))
    capture = world.state.capture()
    feed.put(as_pod(pod_json("late", cpu="2", node="n1")))
    peaks = np.full((1, len(HORIZONS)), 2.0)
    world.state.serve(capture, Forecast(peaks, peaks), np.full(1, world.now), "7", PLAIN)
    of = world.state.snapshot(world.now)
    assert of.forecast[0, -1] == 4.0  # 2 + late's request
    assert of.profile[:, 0].tolist() == [4.0] * 24


def test_a_policy_from_before_these_fields_has_their_defaults() -> None:
    old = msgspec.to_builtins(Policy(target=0.02))
    for field in ("peak_hour_weight", "spread_weight", "rebuild_weight", "hot_share", "hot_weight"):
        del old[field]
    assert msgspec.convert(old, Policy) == Policy(target=0.02)
