"""The champion at work on a cluster: groups of nodes bound its memory and change no forecast."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from extender import outlook
from extender.ask import pod_facts
from extender.outlook import Champion
from extender.state import Capture
from models.arrays import Floats32
from models.classical import classical
from models.kube.types import Pod
from models.shipped import shipped
from models.usage_source import UsageBlock
from models.usage_store import UsageStore
from tests.extender_world import RESOURCE, pod_json

START = 1_700_000_100  # a multiple of 300
NODES = tuple(f"n{number}" for number in range(6))
PODS = tuple(
    pod_facts(
        msgspec.convert(pod_json(f"p{number}", cpu="1", node=NODES[number % 6]), Pod), RESOURCE
    )
    for number in range(24)
)


def used() -> UsageStore:
    """Four hours of usage, different for each pod."""
    cpu = np.random.default_rng(0).uniform(0.1, 0.9, (len(PODS), 48)).astype(np.float32)
    keys = [pod.key for pod in PODS]
    store = UsageStore()
    store.write(UsageBlock(START, keys, cpu), frozenset(keys))
    return store


def test_a_champion_made_before_any_pod_was_listed_works_in_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = shipped(classical("max-7d"))
    capture = Capture(NODES, np.full(len(NODES), 8.0), PODS)
    whole = Champion(model).outlook(capture, used())
    monkeypatch.setattr(outlook, "_PODS_PER_GROUP", 8)
    taken: list[int] = []
    take = UsageStore.take

    def noted(store: UsageStore, pods: Sequence[str]) -> Floats32:
        taken.append(len(pods))
        return take(store, pods)

    monkeypatch.setattr(UsageStore, "take", noted)
    grouped = Champion(model).outlook(capture, used())
    assert sum(taken) == len(PODS)
    assert max(taken) < len(PODS)
    np.testing.assert_allclose(grouped.forecast.forecast, whole.forecast.forecast)
    np.testing.assert_array_equal(grouped.newest, whole.newest)
