"""What narrowing costs in placement quality, and what ranking by the peak's hour gains.

And what it costs where kube-scheduler looks for fewer nodes (`percentageOfNodesToScore`), and what
becomes of replicas' spread where they are left one node.

    python -m bench.candidates [--trace DIR] [--nodes N] [--hours H] [--seeds S] [--tables T ...]

Replays a cluster (generated, or a trace folder) with 1, 8, 32, 128 and all candidates; then, on a
generated cluster of which half the workloads peak by night, with ``peak_hour_weight`` at its
default, alone, and at 0 (the ranking by daily peak only); then the shipped configuration with
kube-scheduler's own share of the nodes and with smaller ones (of 100 nodes or more); then with 32
candidates for all, of which kube-scheduler chooses, and with one for whoever has no preferences,
under several weights of the spread, on nodes in three zones. Online pods
that run at the start stay where they are; those that arrive later are decided. Printed for each:
the nodes' peaks over the replay's last half as shares of their CPU, predicted (the last forecast
for a day) and real, as standard deviation and 95th percentile; reclaimed core-hours; violations;
of the workloads with three pods or more at the end, the mean share of pods in the zone that holds
most, and the share that have a sibling on their node; the standard deviation of the shares of
nodes' memory that online pods request. Averages over the seeds.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl

from models.arrays import Floats
from models.classical import classical
from models.constraints import ZONE
from models.errors import TraceError
from models.generator import ClusterSpec, generate_trace
from models.policy import Policy
from models.shipped import shipped
from models.trace import Trace, read_trace
from shadow.figures import figures
from shadow.options import ReplayOptions
from shadow.replay import replay
from shadow.result import ReplayResult

CANDIDATES = (1, 8, 32, 128, 0)
TABLES = ("candidates", "ranking", "shares", "alone")
ZONES = 3
SPREAD_WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0)
SHARES = (0, 20, 10)
REFRESH = 1800
OFFLINE_LOAD = 0.5
"""Lower than a replay's default: jobs that wait in thousands are tried again whenever one ends,
which says nothing of placement and takes long on 300 nodes."""

LEARN = 7 * 86_400
"""Seconds of generated usage before deciding begins."""

SPEC = ClusterSpec(nodes=300, days=9, rollouts_per_day=1.0, fill=0.8)
"""Each workload is rolled out once a day, so that a day decides most pods again; at 80 % full nodes
kube-scheduler has a choice."""

POLICIES = {
    "default": Policy(),
    "hour alone": Policy(balance_weight=0.0),
    "daily peak only": Policy(peak_hour_weight=0.0),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.candidates")
    parser.add_argument("--trace", type=Path, help="Folder of a trace, instead of a generated one.")
    parser.add_argument("--nodes", type=int, default=SPEC.nodes, help="Of generated clusters.")
    parser.add_argument("--hours", type=float, default=6.0, help="How long to decide for.")
    parser.add_argument("--seeds", type=int, default=1, help="Runs that are averaged.")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="Which ones.")
    given = parser.parse_args()
    seeds = range(given.seeds)
    spec = replace(SPEC, nodes=given.nodes)
    start: int | None = spec.start + LEARN
    traces = [free_to_move(generate_trace(replace(spec, seed=seed))) for seed in seeds]
    if given.trace is not None:
        try:
            traces, start = [read_trace(given.trace)] * given.seeds, None
        except TraceError as e:
            parser.error(str(e))
    shipped_options = ReplayOptions(
        start=start, hours=given.hours, refresh=REFRESH, offline_load=OFFLINE_LOAD
    )
    same_for_all = msgspec.structs.replace(shipped_options, choose_alone=False)
    if "candidates" in given.tables:
        heading("candidates")
        for count in CANDIDATES:
            chosen = msgspec.structs.replace(same_for_all, candidates=count)
            line(str(count or "all"), mean(traces, Policy(), chosen))
    if "ranking" in given.tables:
        spec = replace(spec, night_share=0.5, tide=(0.6, 0.9))
        by_hour = [free_to_move(generate_trace(replace(spec, seed=seed))) for seed in seeds]
        chosen = msgspec.structs.replace(same_for_all, start=spec.start + LEARN)
        heading("ranking")
        for name, policy in POLICIES.items():
            line(name, mean(by_hour, policy, chosen))
    if "shares" in given.tables:
        heading("nodes to score")
        for share in SHARES:
            chosen = msgspec.structs.replace(shipped_options, nodes_to_score=share)
            line(f"{share} %" if share else "its own share", mean(traces, Policy(), chosen))
    if "alone" in given.tables:
        heading("alone")
        line("32 for all", mean(traces, Policy(), same_for_all))
        for weight in SPREAD_WEIGHTS:
            policy = Policy(spread_weight=weight)
            line(f"one, spread {weight:g}", mean(traces, policy, shipped_options))


def mean(traces: Sequence[Trace], policy: Policy, chosen: ReplayOptions) -> Floats:
    """The figures of `measure`, averaged over a trace for each seed."""
    found = [
        measure(trace, policy, msgspec.structs.replace(chosen, seed=seed))
        for seed, trace in enumerate(traces)
    ]
    return np.asarray(np.mean(found, axis=0))


def free_to_move(trace: Trace) -> Trace:
    """The trace with zones, where pods that arrive after a week are placed anew."""
    start = pl.col("start")
    late = start > start.min() + pl.duration(seconds=LEARN)
    node = pl.when(late).then(None).otherwise(pl.col("node")).alias("node")
    assert trace.nodes is not None
    zones = [f'{{"{ZONE}": "zone-{at % ZONES}"}}' for at in range(trace.nodes.height)]
    nodes = trace.nodes.with_columns(labels=pl.Series(zones))
    return replace(trace, pods=trace.pods.with_columns(node), nodes=nodes)


def measure(trace: Trace, policy: Policy, chosen: ReplayOptions) -> Floats:
    """One row of a table; see the module's text."""
    result = replay(trace, shipped(classical("koordinator")), policy=policy, options=chosen)
    found = figures(result)
    predicted, real = peaks(result)
    violated = np.nan if found.violation_rate is None else found.violation_rate
    return np.array(
        [
            predicted.std(),
            np.quantile(predicted, 0.95),
            real.std(),
            np.quantile(real, 0.95),
            found.reclaimed_core_hours,
            violated,
            result.decisions,
            *spread(result, trace),
        ]
    )


def spread(result: ReplayResult, trace: Trace) -> tuple[float, float, float]:
    """Mean share in the fullest zone, share with a sibling beside it, deviation of memory.

    The first is NaN where nodes have no zones, both are where no workload has so many pods.
    """
    runs, pods, zone = result.runs, result.pods, result.fleet.zone
    running = (runs.end >= result.stop) & ~pods.offline[runs.pod]
    there = pl.DataFrame(
        {
            "pod": [pods.names[at] for at in runs.pod[running].tolist()],
            "row": runs.node[running],
            "zone": 0 if zone is None else zone[runs.node[running]],
            "memory": pods.memory[runs.pod[running]],
        }
    ).join(trace.pods.select("pod", "workload"), on="pod")
    several = there.filter(pl.len().over("workload") >= ZONES)
    zones = several.group_by("workload", "zone").len()
    fullest = zones.group_by("workload").agg(share=pl.col("len").max() / pl.col("len").sum())
    beside = several.select(beside=pl.len().over("workload", "row") > 1)["beside"]
    memory = np.zeros(len(result.fleet))
    np.add.at(memory, there["row"].to_numpy(), there["memory"].to_numpy())
    known = len(several) > 0
    return (
        float(np.mean(fullest["share"].to_numpy())) if known and zone is not None else np.nan,
        float(np.mean(beside.to_numpy())) if known else np.nan,
        float((memory / result.fleet.memory).std()),
    )


def peaks(result: ReplayResult) -> tuple[Floats, Floats]:
    """The nodes' predicted and real peaks at the end, [N] shares of allocatable.

    Raises:
        SystemExit: the trace has no usage.
    """
    if result.used is None or result.forecasts is None:
        raise SystemExit("the trace has no usage, so there are no peaks to compare")
    allocatable = result.fleet.millicpu / 1000
    real = result.used[:, result.used.shape[1] // 2 :].max(axis=1) / allocatable
    return result.forecasts.forecast[-1, :, -1] / allocatable, real


def heading(what: str) -> None:
    """Print the names of the columns."""
    print(
        f"\n{what:<16} {'predicted sd':>12} {'p95':>6} {'real sd':>8} {'p95':>6}"
        f" {'reclaimed core-h':>16} {'violations':>10} {'decisions':>9}"
        f" {'in a zone':>9} {'beside':>6} {'memory sd':>9}"
    )


def line(name: str, row: Floats) -> None:
    """Print the figures of one way to decide."""
    sd, p95, real_sd, real_p95, reclaimed, violations, decisions, zone, beside, memory = (
        row.tolist()
    )
    print(
        f"{name:<16} {sd:>12.4f} {p95:>6.3f} {real_sd:>8.4f} {real_p95:>6.3f}"
        f" {reclaimed:>16,.0f} {violations:>10.4f} {decisions:>9,.0f}"
        f" {zone:>9.3f} {beside:>6.3f} {memory:>9.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
