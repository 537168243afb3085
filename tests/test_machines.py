"""Machines of an evaluation, and the truth they are judged by, against obvious versions."""

from __future__ import annotations

import numpy as np
import pytest

from models.grid import WINDOW, UsageGrid
from trainer.machines import decision_times, machines_of, peak_truth, split_pods


def grid_of(pods: int = 60, windows: int = 400, seed: int = 0) -> UsageGrid:
    rng = np.random.default_rng(seed)
    cpu = rng.random((pods, windows)).astype(np.float32)
    cpu[rng.random(cpu.shape) < 0.01] = np.nan
    names = tuple(f"p{i}" for i in range(pods))
    born, gone = np.zeros(pods, np.int64), np.full(pods, 10**9)
    gone[3] = 200 * WINDOW
    cpu[3, 200:] = np.nan
    return UsageGrid(0, cpu, None, names, names, rng.uniform(1, 4, pods), born, gone)


def test_train_and_test_share_no_pod() -> None:
    train, test = split_pods(grid_of(), 1)
    assert not set(train) & set(test)
    assert len(train) == 36  # 60 % of 60
    assert len(test) == 24


def test_random_machines_hold_each_pod_once_and_differ() -> None:
    grid = grid_of()
    machines = machines_of(grid, np.arange(60), 0)
    found = set()
    for number in range(len(machines)):
        pods = machines.pod[machines.node == number].tolist()
        assert len(set(pods)) == len(pods) == machines.size[number]
        assert machines.limit[number] == pytest.approx(grid.request[pods].sum())
        found.add(tuple(sorted(pods)))
    assert len(found) == len(machines)
    assert set(machines.size.tolist()) == {8, 20, 40}


def test_the_traces_nodes_are_used_where_it_knows_them() -> None:
    grid = grid_of(4)
    machines = machines_of(grid, np.arange(4), 0, ["b", "a", None, "a"])
    assert sorted(machines.size.tolist()) == [1, 2]


def test_decisions_lie_on_the_half_hour_within_the_share() -> None:
    times = decision_times(grid_of(), 0.5, 0.75)
    assert (times % 1800 == 0).all()
    assert times.min() >= 200 * WINDOW
    assert times.max() < 300 * WINDOW


@pytest.mark.parametrize("hours", [1, 6])
def test_the_truth_equals_the_slow_version(hours: int) -> None:
    grid = grid_of()
    machines = machines_of(grid, np.arange(60), 0)
    for time in (190 * WINDOW, 150 * WINDOW, 320 * WINDOW):
        found = peak_truth(grid, machines, time, [hours])[:, 0]
        for number in range(len(machines)):
            pods = [p for p in machines.pod[machines.node == number] if grid.gone[p] > time]
            sums = []
            for window in range(time // WINDOW, time // WINDOW + hours * 12):
                values = []
                for pod in pods:
                    over = (window + 1) * WINDOW > grid.gone[pod]
                    value = grid.cpu[pod, window]
                    values.append(0.0 if over and np.isnan(value) else float(value))
                sums.append(sum(values))
            known = [value for value in sums if not np.isnan(value)]
            if len(known) < 0.75 * hours * 12:
                assert np.isnan(found[number])
            else:
                assert found[number] == pytest.approx(max(known), rel=1e-5)


def test_beyond_the_grid_nothing_is_known() -> None:
    grid = grid_of()
    machines = machines_of(grid, np.arange(60), 0)
    assert np.isnan(peak_truth(grid, machines, 395 * WINDOW, [1])).all()
    assert np.isnan(peak_truth(grid, machines, 300 * WINDOW, [24])).all()
