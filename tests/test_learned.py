"""What one process has learned, and the next one still knows."""

from pathlib import Path

import pytest

from extender.homes import Homes, Left
from extender.learned import Learned, load_learned, save_learned
from extender.runs import FEWEST, MARGIN, Run, Runs
from tests.extender_world import World, as_pod, rebuilt_json

JOB = "default/CronJob/nightly"
LEARNED = Learned(
    runs={JOB: tuple(Run(float(number), 60.0) for number in range(FEWEST))},
    homes={"default/StatefulSet/db": (Left("n1", 5000.0), Left("n2", 6000.0, "uid-db-1"))},
)


def test_what_was_learned_survives(tmp_path: Path) -> None:
    path = tmp_path / "store" / "learned.json"
    save_learned(LEARNED, path)
    found = load_learned(path)
    assert found == LEARNED
    assert Runs(found.runs).expected(JOB) == 60.0 * MARGIN
    assert [file.name for file in path.parent.iterdir()] == ["learned.json"]


def test_a_record_is_not_changed_by_what_comes_later() -> None:
    homes = Homes(LEARNED.homes)
    record = homes.record()
    homes.settle("default/StatefulSet/db", "uid-db-1", "n2")
    homes.claim("default/StatefulSet/db", "uid-db-2", lambda _: True, 0.0)
    assert record == LEARNED.homes
    assert homes.record() == {"default/StatefulSet/db": (Left("n1", 5000.0, "uid-db-2"),)}


def test_no_file_is_nothing_learned(tmp_path: Path) -> None:
    assert load_learned(tmp_path / "learned.json") == Learned()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"a": []}',
        '{"runs": {"a": [["x", 1]]}}',
        '{"runs": {"a": [[1]]}}',
        '{"homes": {"a": [["n1"]]}}',
        "\ufeff{}",
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "learned.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        load_learned(path)


def errors(world: World) -> float | None:
    registry = world.server.telemetry.registry
    return registry.get_sample_value("archimedes_learned_file_errors_total")


@pytest.mark.parametrize("broken", [False, True])
async def test_a_server_takes_over_what_is_in_the_file(tmp_path: Path, broken: bool) -> None:
    path = tmp_path / "learned.json"
    save_learned(LEARNED, path)
    if broken:
        path.write_text("{")
    world = World(learned_file=path)
    assert (world.state.runs.expected(JOB) is None) == broken
    assert errors(world) == float(broken)
    await world.server.close()
    assert load_learned(path) == (Learned() if broken else LEARNED)


async def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    world = World(learned_file=tmp_path / "file" / "learned.json")
    before = errors(world)
    await world.server.close()
    assert errors(world) == (before or 0) + 1.0


async def test_a_node_that_was_left_before_a_restart_is_offered_after_it(tmp_path: Path) -> None:
    path, nodes, cores = tmp_path / "learned.json", ("n1", "n2"), {"n1": 1.0, "n2": 3.0}
    world = World(nodes, learned_file=path)
    world.sync()
    world.cluster.put_pod(as_pod(rebuilt_json("db-0", node="n2")))
    world.cluster.delete_pod("default", "db-0")
    await world.server.close()
    world = World(nodes, learned_file=path, candidates=1)
    world.sync()
    world.forecast(cores)
    assert world.filter(rebuilt_json("db-1"))["NodeNames"] == ["n2"]
    assert world.filter(rebuilt_json("db-2"))["NodeNames"] == ["n1"]  # n2 is given
