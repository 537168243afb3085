"""The recording: what production decided can be decided again, exactly, from disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extender import recorder, recording
from extender.decide import Alone
from extender.decision_log import Decision, read_log
from extender.recorder import Recorder
from extender.recording import (
    Decoder,
    Encoder,
    OnlinePod,
    Recorded,
    Refresh,
    read_frames,
    segments,
)
from models.policy import Policy
from shadow.challenge import choice
from shadow.live_state import Versions
from shadow.redecide import Redecided, redecide
from tests.extender_world import PLAIN, START, World, as_node, node_json, pod_json

NAMES = tuple(f"n{row}" for row in range(40))
NOBODY = np.zeros(0, np.int64)


def entries(folder: Path) -> Iterator[Refresh | Recorded]:
    """All that a recording holds."""
    for segment in segments(folder):
        decoder = Decoder()
        with segment.open("rb") as file:
            for batch in read_frames(file):
                yield from filter(None, map(decoder.add, batch))


def busy(path: Path, pods: int = 30) -> None:
    """Decide pods on changing forecasts, promises, nodes and node orders."""
    world = World(NAMES, decision_log=str(path), candidates=4)
    for row, name in enumerate(NAMES):
        node = node_json(name)
        node["metadata"]["labels"] = {"topology.kubernetes.io/zone": f"zone-{row % 3}"}
        world.cluster.put_node(as_node(node))
    world.sync()
    rng = np.random.default_rng(5)
    for number in range(pods):
        if number % 7 == 0:
            world.forecast({name: float(rng.uniform(0, 8)) for name in NAMES[number % 3 :]})
        if number == 11:
            world.cluster.delete_node("n3")
        world.now += 1.0
        names = list(rng.permutation([*world.cluster.nodes, "stranger"]))
        offline = number % 3 > 0
        pod = pod_json(
            f"p{number}", 700 + number if offline else None, cpu=None if offline else "1"
        )
        if number % 2:
            owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u"}
            pod["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
        world.filter(pod, names)
        world.preempt(pod, {"n1": ["uid-p0"]})  # logged as well, and nothing to decide again
    assert world.server.recorder is not None
    world.server.recorder.close()
    world.server.decisions.close()


def check(path: Path) -> None:
    """Each logged decision, made again from the recording, has the same candidates and scores."""
    logged = [record for record in read_log(path) if isinstance(record, Decision)]
    made = [entry for entry in entries(Path(f"{path}.recording")) if isinstance(entry, Recorded)]
    assert [(d.time, d.uid, d.snapshot) for d in logged] == [
        (m.time, m.uid, m.snapshot.id) for m in made
    ]
    for decision, recorded in zip(logged, made, strict=True):
        verdicts = recorded.again()
        names = {row: name for name, row in recorded.snapshot.index.items()}
        again = [
            (names[int(recorded.rows[at])], float(verdicts.score[at]), int(verdicts.available[at]))
            for at in verdicts.passed
        ]
        assert again == [(c.node, c.score, c.available) for c in decision.candidates]
    assert any(decision.candidates and decision.offline for decision in logged)
    spread = [m for m in made if m.alone is not None and len(m.alone.replicas)]
    assert len(spread) > 5
    # Without their siblings, some of these would be elsewhere.
    apart = [replace(m, alone=Alone(m.alone.passed_over, NOBODY)) for m in spread if m.alone]
    assert any(
        m.again().passed.tolist() != one.again().passed.tolist()
        for m, one in zip(spread, apart, strict=True)
    )


def test_a_recorded_decision_is_made_again_exactly(tmp_path: Path) -> None:
    busy(tmp_path / "decisions.jsonl")
    check(tmp_path / "decisions.jsonl")


def test_a_node_that_was_not_known_is_left_out_when_it_is_decided_again(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    world = World(NAMES, decision_log=str(path))
    world.sync()
    answer = world.filter(pod_json("p", cpu="1"), ["stranger", "n1"])
    assert sorted(answer["NodeNames"]) == ["n1", "stranger"]
    assert world.server.recorder is not None
    world.server.recorder.close()
    world.server.decisions.close()
    assert redecide(path, None) == Redecided(decisions=1)
    (made,) = (entry for entry in entries(Path(f"{path}.recording")) if isinstance(entry, Recorded))
    found, common = choice(made, made, ["stranger", "n1"], Versions("1", "2"), 0.0)
    assert (found.chosen, found.nodes, common) == ("n1", ("n1",), 1.0)


def test_every_segment_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(recorder, "_GATHER_SECONDS", 0)
    busy(tmp_path / "decisions.jsonl")
    assert len(segments(tmp_path / "decisions.jsonl.recording")) > 1
    check(tmp_path / "decisions.jsonl")


def test_a_half_written_frame_is_awaited(tmp_path: Path) -> None:
    busy(tmp_path / "decisions.jsonl")
    (segment,) = segments(tmp_path / "decisions.jsonl.recording")
    whole = segment.read_bytes()
    with segment.open("rb") as file:
        count = sum(len(batch) for batch in read_frames(file))
    segment.write_bytes(whole[:-1])
    with segment.open("rb") as file:
        before = sum(len(batch) for batch in read_frames(file))
        segment.write_bytes(whole)
        assert before < count == before + sum(len(batch) for batch in read_frames(file))


def refresh(time: float) -> Refresh:
    """A refresh of one node."""
    one = np.ones((1, 5))
    return Refresh(time, int(time), "7", ("n1",), np.array([8.0]), one, one, {}, 1.0)


def test_pods_that_are_encoded_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_PODS_AT_ONCE", 2)
    encoder, decoder = Encoder(), Decoder()
    everyone = {f"p{at}": OnlinePod(f"p{at}", "n1", 1.0, 0.0, "w") for at in range(5)}
    moved = everyone | {
        "p1": OnlinePod("p1", "n2", 1.0, 9.0, "w"),
        "p9": OnlinePod("p9", "n1", 2.0, 9.0, "w"),
    }
    del moved["p0"]
    for pods in (everyone, moved):
        found = decoder.add(encoder.refresh(replace(refresh(START), pods=pods)))
        assert isinstance(found, Refresh)
        assert found.pods == pods


def test_old_segments_go_and_losses_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "SEGMENT_BYTES", 1)  # each frame ends its segment
    monkeypatch.setattr(recorder, "_GATHER_SECONDS", 0)
    lost: list[int] = []
    folder = tmp_path / "recording"
    for hour in (0, 1, 50):  # each recorder is a restart
        with_limit = Recorder(
            folder, max_bytes=2**20, max_age=3600, advertise_share=1.0, dropped=lost.append
        )
        with_limit.put(lambda at=START + hour * 3600: refresh(at))  # type: ignore[misc]
        with_limit.close()
    # At hour 50 the first has ended 49 h ago; the second reaches to the third's beginning.
    assert [entry.time for entry in entries(folder)] == [START + 3600, START + 50 * 3600]
    assert not lost


def test_another_policy_changes_decisions_and_the_recorded_one_none(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    busy(path)
    assert redecide(path, None) == Redecided(decisions=30)
    assert redecide(path, PLAIN) == Redecided(decisions=30)  # what is reclaimed is the same again
    strict = redecide(path, Policy(ceiling=0.01, system_reserve=0.0))  # 80m of 8 cores
    logged = [record for record in read_log(path) if isinstance(record, Decision)]
    offline = [decision for decision in logged if decision.offline and decision.candidates]
    assert strict.refused == strict.different == len(offline) > 0
    assert strict.lost == sum(len(decision.candidates) for decision in offline)
    for segment in segments(Path(f"{path}.recording")):
        segment.unlink()
    assert redecide(path, None) == Redecided(unrecorded=30)
