"""The generated cluster is valid, full by request, idle by use, and tidal."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import models.generator_spec
from models.arrays import Floats
from models.errors import SettingsError
from models.generator import ClusterSpec, JobSpec, generate_trace, offline_pods
from models.grid import DAY, UsageGrid
from models.trace import Trace, digest, read_trace, usage_grid, write_trace

SPEC = ClusterSpec(seed=7, nodes=12, days=10)
CORES = SPEC.nodes * SPEC.node_cpu


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate_trace(SPEC)


@pytest.fixture(scope="module")
def grid(trace: Trace) -> UsageGrid:
    return usage_grid(trace)


def total(grid: UsageGrid) -> Floats:
    """Cores in use in each window; NaN in an outage."""
    seen = ~np.isnan(grid.cpu).all(axis=0)
    return np.where(seen, np.nansum(grid.cpu, axis=0, dtype=np.float64), np.nan)


def test_the_same_seed_gives_the_same_trace(trace: Trace) -> None:
    assert digest(generate_trace(SPEC)) == digest(trace)
    assert digest(generate_trace(dataclasses.replace(SPEC, seed=8))) != digest(trace)


def test_it_is_a_valid_trace(tmp_path: Path, trace: Trace) -> None:
    write_trace(trace, tmp_path / "t")
    again = read_trace(tmp_path / "t")
    assert digest(again) == digest(trace)
    assert trace.nodes is not None
    assert trace.nodes.height == SPEC.nodes


@pytest.mark.parametrize("seed", range(3))
def test_small_and_odd_clusters_are_valid(tmp_path: Path, seed: int) -> None:
    spec = ClusterSpec(seed=seed, nodes=1, days=1, node_cpu=4.0, rollouts_per_day=5.0)
    write_trace(generate_trace(spec), tmp_path / "t")
    assert read_trace(tmp_path / "t").pods.height >= 1


def test_requests_fill_the_nodes_and_never_exceed_them(trace: Trace) -> None:
    """At every start and end of a pod, add up what its node holds, slowly."""
    for pods in trace.pods.partition_by("node"):
        for moment in pods["start"].unique():
            there = pods.filter(pl.col("start") <= moment, moment < pl.col("end"))
            assert there["cpu_request"].sum() <= SPEC.node_cpu + 1e-9
            assert there["memory_request"].sum() <= SPEC.node_memory + 1e-9
    first = trace.pods["start"].min()
    requested = float(trace.pods.filter(pl.col("start") == first)["cpu_request"].sum())
    assert 0.90 <= requested / CORES <= 0.95


def test_replicas_of_a_workload_never_overlap_in_a_slot(trace: Trace) -> None:
    """A rollout ends a pod when its successor starts, so a workload's size stays the same."""
    for pods in trace.pods.partition_by("workload"):
        for moment in pods["start"].unique():
            alive = pods.filter(pl.col("start") <= moment, moment < pl.col("end")).height
            assert alive == pods.filter(pl.col("start") == pods["start"].min()).height


def test_rollouts_replace_pods(trace: Trace) -> None:
    replaced = trace.pods.filter(pl.col("end") < trace.pods["end"].max()).height
    born_later = trace.pods.filter(pl.col("start") > trace.pods["start"].min()).height
    assert replaced == born_later > 10
    calm = generate_trace(dataclasses.replace(SPEC, rollouts_per_day=0.0))
    assert calm.pods["start"].n_unique() == 1


def test_users_ask_for_several_times_what_they_use(grid: UsageGrid) -> None:
    # Requests are 2 to 6 times the mean use, uniformly: mean use / request is ln(6/2)/4 = 0.27 on
    # the average, of 93 % that is requested: 0.26.
    assert 0.18 <= np.nanmean(total(grid)) / CORES <= 0.34
    limit = SPEC.burst_limit * grid.request[:, None]
    assert np.nanmax(grid.cpu / limit) <= 1 + 1e-6


def test_no_node_uses_more_than_it_has() -> None:
    crowded = dataclasses.replace(SPEC, days=2, over_request=(1.0, 1.0), burst_limit=4.0)
    trace = generate_trace(crowded)
    assert trace.usage is not None
    load = (
        trace.usage.join(trace.pods.select("pod", "node"), on="pod")
        .group_by("node", "time")
        .agg(pl.col("cpu").cast(pl.Float64).sum())["cpu"]
    )
    assert load.max() == pytest.approx(
        SPEC.node_cpu, rel=1e-5
    )  # contention was reached, not passed


def test_the_tide_and_the_weekend(grid: UsageGrid) -> None:
    use = total(grid).reshape(SPEC.days, DAY)
    hours = np.nanmean(use.reshape(SPEC.days, 24, 12), axis=(0, 2))
    assert 11 <= int(np.argmax(hours)) <= 17
    assert hours.max() > 1.3 * hours.min()
    days = np.nanmean(use, axis=1)  # Monday 6 to Wednesday 15 January 2025
    assert days[5:7].max() < 0.9 * days[:5].min()


def test_night_workloads_peak_twelve_hours_off_and_work_at_weekends() -> None:
    night = usage_grid(generate_trace(dataclasses.replace(SPEC, night_share=1.0)))
    use = total(night).reshape(SPEC.days, DAY)
    hours = np.nanmean(use.reshape(SPEC.days, 24, 12), axis=(0, 2))
    assert int(np.argmax(hours)) in {23, 0, 1, 2, 3, 4, 5}
    days = np.nanmean(use, axis=1)
    assert days[5:7].mean() == pytest.approx(days[:5].mean(), rel=0.1)


def _by_workload(grid: UsageGrid) -> dict[str, Floats]:
    names = np.array(grid.workloads)
    whole = ~np.isnan(grid.cpu).all(axis=1)
    return {
        name: grid.cpu[(names == name) & whole].astype(np.float64) for name in sorted(set(names))
    }


def _correlation(left: Floats, right: Floats) -> float:
    both = ~np.isnan(left) & ~np.isnan(right)
    return float(np.corrcoef(left[both], right[both])[0, 1])


def test_replicas_share_their_load() -> None:
    flat = dataclasses.replace(SPEC, rollouts_per_day=0.0, tide=(0.0, 0.0), weekend_dip=(0.0, 0.0))
    calm = usage_grid(generate_trace(flat))
    rows = [group for group in _by_workload(calm).values() if len(group) > 1]
    same = [_correlation(group[0], group[1]) for group in rows]
    other = [_correlation(a[0], b[0]) for a, b in itertools.pairwise(rows)]
    assert np.mean(same) > 0.4
    assert np.mean(same) > 3 * abs(np.mean(other))


def test_noise_is_autocorrelated_and_bursts_are_heavy_tailed() -> None:
    base = dataclasses.replace(
        SPEC,
        tide=(0.0, 0.0),
        weekend_dip=(0.0, 0.0),
        growth=0.0,
        imbalance=0.0,
        rollouts_per_day=0.0,
        outages=0,
        missing=0.0,
        burst_limit=1e3,
    )
    flat = usage_grid(generate_trace(dataclasses.replace(base, spikes_per_day=0.0)))
    logs = np.log(flat.cpu.astype(np.float64))
    lagged = [float(np.corrcoef(row[:-1], row[1:])[0, 1]) for row in logs]
    assert np.mean(lagged) == pytest.approx(SPEC.noise_memory, abs=0.03)
    assert np.mean(logs.std(axis=1)) == pytest.approx(SPEC.noise, abs=0.02)
    spiky = usage_grid(generate_trace(base))
    ratio = spiky.cpu / np.median(spiky.cpu, axis=1, keepdims=True)
    assert np.quantile(ratio, 0.999) > 2.0 > np.quantile(flat.cpu / flat.cpu.mean(), 0.5)


def test_gaps_are_real(grid: UsageGrid) -> None:
    alive = (grid.born[:, None] <= grid.start + 300 * np.arange(grid.windows)) & (
        grid.start + 300 * np.arange(grid.windows) < grid.gone[:, None]
    )
    missing = np.isnan(grid.cpu) & alive
    outage = np.isnan(grid.cpu).all(axis=0)
    assert 4 <= outage.sum() <= 2 * 36  # two outages of 20 minutes to 3 hours
    single = missing[:, ~outage].sum() / alive[:, ~outage].sum()
    assert single == pytest.approx(SPEC.missing, rel=0.2)
    assert not (~np.isnan(grid.cpu) & ~alive).any()


def test_the_highest_minute_is_above_the_mean(grid: UsageGrid) -> None:
    assert grid.cpu_max is not None
    seen = ~np.isnan(grid.cpu)
    assert (grid.cpu_max[seen] >= grid.cpu[seen]).all()
    above = grid.cpu_max[seen] / np.maximum(grid.cpu[seen], 1e-9) - 1
    assert np.median(above) == pytest.approx(SPEC.minute_peak, abs=0.03)


START, END = SPEC.start, SPEC.start + 10 * 86_400


def test_offline_jobs_offer_the_load_that_was_asked_for() -> None:
    offered = []
    for seed in range(5):
        jobs = offline_pods(seed, START, END, 40.0)
        seconds = (jobs["end"] - jobs["start"]).dt.total_seconds()
        offered.append(float((seconds * jobs["cpu_request"]).sum()) / (END - START))
    assert np.mean(offered) == pytest.approx(40.0, rel=0.03)


def test_offline_jobs_are_heavy_tailed_within_bounds() -> None:
    jobs = offline_pods(1, START, END, 100.0)
    minutes = (jobs["end"] - jobs["start"]).dt.total_seconds() / 60
    assert float(np.median(minutes)) == pytest.approx(JobSpec().median_minutes, rel=0.2)
    assert minutes.min() == JobSpec().shortest_minutes
    assert 8 * 60 < float(minutes.to_numpy().max()) <= JobSpec().longest_hours * 60
    assert float(minutes.to_numpy().mean()) > 2 * JobSpec().median_minutes
    assert set(jobs["cpu_request"]) == set(JobSpec().asks)
    assert jobs["tier"].unique().to_list() == ["offline"]
    assert jobs["node"].null_count() == jobs.height
    within = jobs.with_columns(log=pl.Series(np.log(minutes)))
    spread = within.group_by("workload").agg(pl.col("log").std())["log"].mean()
    assert spread == pytest.approx(JobSpec().run_spread, abs=0.1)  # runs of a workload last alike


def test_offline_jobs_arrive_in_order_with_a_tide() -> None:
    jobs = offline_pods(2, START, END, 100.0)
    assert jobs["start"].is_sorted()
    first, last = jobs["start"].dt.epoch("s").to_numpy()[[0, -1]]
    assert START <= first < last < END
    hours = np.bincount(jobs["start"].dt.hour().to_numpy(), minlength=24)
    # 1 + 0.5 cos: three times as many in the peak hour as twelve hours off.
    assert hours[19:22].sum() / hours[7:10].sum() == pytest.approx(3.0, rel=0.2)


def test_offline_jobs_are_pods_of_a_trace(tmp_path: Path) -> None:
    jobs = offline_pods(3, START, END, 5.0)
    assert jobs.equals(offline_pods(3, START, END, 5.0))
    write_trace(Trace("jobs", None, jobs, None), tmp_path / "t")
    assert read_trace(tmp_path / "t").pods.height == jobs.height


def test_no_offline_jobs() -> None:
    assert offline_pods(0, START, END, 0.0).height == 0
    empty = offline_pods(0, START, START, 10.0)
    assert empty.height == 0
    assert empty.columns == offline_pods(0, START, END, 1.0).columns


def test_every_parameter_says_what_it_is() -> None:
    source = inspect.getsource(models.generator_spec)
    for spec in (ClusterSpec, JobSpec):
        for field in dataclasses.fields(spec):
            after = source.split(f"\n    {field.name}: ", 1)[1].split("\n", 1)[1]
            assert after.lstrip().startswith('"""'), f"{field.name} has no docstring"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": 0}, "nodes is 0; it must be 1 or more"),
        ({"days": 0}, "days is 0"),
        ({"start": 100}, "start is 100; it must be a multiple of 300"),
        ({"fill": 1.5}, "fill is 1.5"),
        ({"node_cpu": 0.1}, "less CPU or memory than the smallest request"),
        ({"node_memory": 0.1}, "less CPU or memory than the smallest request"),
    ],
)
def test_impossible_clusters(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ClusterSpec(**change)
