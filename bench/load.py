"""A sustained 300 pods a second while everything else goes on: python -m bench.load.

On loopback: the real server (`bench.rig.server`), a simulated API server (`bench.rig.cluster`) and
Prometheus (`bench.rig.usage`), and this caller, which asks filter, prioritize and bind as
kube-scheduler would, half of the pods offline. In every round there is a quiet stretch in which
forecasts are refreshed now and then, a storm of pod events, and a model swap. Calls are sorted by
what the server was doing meanwhile, as its journal says.

Prints p50, p99 and p99.9 of each verb in milliseconds, the p99 as a multiple of the quiet one
(budget for filter during a refresh: 1.5), and for how long the event loop was late at most (budget:
5 ms): in all, by work of its own thread, and by garbage collections. Where other programs use the
cores, only the latter two say something about the server; and no more than the control allows, the
same piece of work over and over beside it: what the machine adds to that, it adds to the loop.

    python -m bench.load --nodes 5000 --pods 150000 --seconds 60 --rounds 3      the full size
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import uvloop

from bench.rig import world
from bench.rig.caller import Call, Caller, Connection, within
from bench.rig.control import UNIT_SECONDS
from bench.rig.server import Span, read_journal
from models.arrays import Floats
from tests.controlplane.process import Process

RATE = 300.0
STORM = 10_000
LIMIT = 0.005
"""Seconds for which nothing may block the loop."""

_SETTLE_SECONDS = 3.0
PHASES = ("quiet", "refresh", "storm", "swap")

Times = tuple[float, float]


@dataclass(slots=True)
class Timeline:
    """When the caller let it rain, and how the calls went."""

    storms: list[Times] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    events: float = 0.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each round's quiet stretch")
    parser.add_argument("--storm-seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archimedes-load-") as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Start everything, run the rounds, print the tables."""
    models = world.train(folder, 2)
    journal = folder / "journal.jsonl"
    sizes = folder, options.nodes, options.pods
    with world.cluster(*sizes) as cluster, world.prometheus(*sizes) as usage:
        settings: world.Json = {
            "kubeconfig": str(world.kubeconfig(folder, cluster.url)),
            "prometheus": {"url": usage.url, "history_days": 1, "delay_seconds": 0},
            "model": {"poll_seconds": 1},
            "refresh_seconds": 20,
        }
        command = ["bench.rig.server", "SETTINGS", str(journal), *map(str, models)]
        with world.extender(folder, command, settings) as extender:
            world.wait_for_forecasts(extender, options.nodes)
            caller = Caller(extender.port, cluster.port, options.nodes, RATE)
            control = Process("control", [sys.executable, "-m", "bench.rig.control"], folder)
            try:
                timeline = uvloop.run(rounds(options, caller, extender, cluster))
            finally:
                control.stop()
            memory = extender.resident()
    report(timeline, read_journal(journal), caller, memory)
    print_control(np.loadtxt(control.log))


async def rounds(
    options: argparse.Namespace, caller: Caller, extender: world.Service, cluster: world.Service
) -> Timeline:
    """Quiet, a swap, a storm, and again."""
    timeline = Timeline()
    await caller.run(_SETTLE_SECONDS)
    caller.calls.clear()
    for _ in range(options.rounds):
        timeline.rates.append(await caller.run(options.seconds))
        os.kill(extender.process.pid, signal.SIGUSR1)
        timeline.rates.append(await caller.run(options.seconds / 2))
        connection = await Connection.open(cluster.port)
        path = f"/bench/storm?rate={STORM}&seconds={options.storm_seconds}"
        began = time.monotonic()
        sent, rate = await asyncio.gather(
            connection.post(path, b""), caller.run(options.storm_seconds)
        )
        timeline.storms.append((began, time.monotonic()))
        timeline.rates.append(rate)
        timeline.events += msgspec.json.decode(sent)["sent"]
        connection.writer.close()
        await caller.run(_SETTLE_SECONDS)
    timeline.calls = caller.calls
    return timeline


def report(timeline: Timeline, journal: Sequence[Span], caller: Caller, memory: int) -> None:
    """Print the tables."""
    spans = phases(timeline, journal)
    sorted_calls = {name: within(timeline.calls, spans[name]) for name in PHASES[1:]}
    busy = set().union(*sorted_calls.values())
    storm = set(sorted_calls["storm"])
    for name in ("refresh", "swap"):
        sorted_calls[name] = [call for call in sorted_calls[name] if call not in storm]
    sorted_calls["quiet"] = [call for call in timeline.calls if call not in busy]
    print(f"{'':<10} {'':<8} {'calls':>7} {'p50':>7} {'p99':>7} {'p99.9':>7}  p99 / quiet")
    for verb in ("filter", "prioritize", "bind"):
        quiet = np.nan
        for name in PHASES:
            took = np.array([c.stop - c.start for c in sorted_calls[name] if c.verb == verb])
            if not len(took):
                continue
            p50, p99, p999 = np.percentile(took, (50, 99, 99.9)) * 1000
            quiet = p99 if name == "quiet" else quiet
            print(
                f"{verb:<10} {name:<8} {len(took):>7,} {p50:>7.2f} {p99:>7.2f} {p999:>7.2f}"
                f"  {p99 / quiet:>5.2f}"
            )
    print_blocks(spans, journal)
    seconds = sum(stop - start for start, stop in timeline.storms)
    print(
        f"{np.mean(timeline.rates):.0f} pods a second (least {min(timeline.rates):.0f}),"
        f" {caller.placed:,} placed, {caller.waiting:,} refused;"
        f" storms of {timeline.events / seconds:,.0f} events a second;"
        f" {memory / 2**20:,.0f} MiB at most"
    )


def print_blocks(spans: dict[str, list[Times]], journal: Sequence[Span]) -> None:
    """How long the loop was blocked in each phase, and by the collector."""
    head = "".join(f"{name:>9}" for name in ("longest", "> 5 ms", "own work", "> 5 ms", "gc"))
    print(f"{'loop late, ms':<18}{head}")
    began = min(start for name in PHASES for start, _ in spans[name] or [(np.inf, 0.0)])
    during = [span for span in journal if span.start >= began]
    for name in (*PHASES[1:], "quiet"):
        others = [at for other in PHASES[1:] for at in spans[other]]
        found = [
            span
            for span in during
            if _touches(span, others if name == "quiet" else spans[name]) is not (name == "quiet")
        ]
        late = np.array([s.stop - s.start for s in found if s.what == "lag"] or [0.0])
        own = np.array([s.own for s in found if s.what == "lag"] or [0.0])
        collected = max((s.stop - s.start for s in found if s.what == "gc"), default=0.0)
        print(
            f"{name:<18}{late.max() * 1000:>9.1f}{(late > LIMIT).sum():>9,}"
            f"{own.max() * 1000:>9.1f}{(own > LIMIT).sum():>9,}{collected * 1000:>9.1f}"
        )


def print_control(took: Floats) -> None:
    """What the machine made of the same half millisecond of work, meanwhile."""
    p50, p99, p999 = np.percentile(took, (50, 99, 99.9)) * 1000
    print(
        f"beside it, a piece of work that needs {UNIT_SECONDS * 1000:g} ms took {p50:.2f} ms of CPU"
        f" (p50), {p99:.2f} (p99), {p999:.2f} (p99.9), {took.max() * 1000:.2f} (longest of"
        f" {len(took):,}), {(took > LIMIT).sum():,} times above 5"
    )


def phases(timeline: Timeline, journal: Sequence[Span]) -> dict[str, list[Times]]:
    """When the server was busy with what, once the caller had begun."""
    began = min(call.start for call in timeline.calls)

    def of(what: str) -> list[Times]:
        return [(s.start, s.stop) for s in journal if s.what == what and s.stop > began]

    return {"quiet": [], "refresh": of("refresh"), "swap": of("swap"), "storm": timeline.storms}


def _touches(span: Span, others: Sequence[Times]) -> bool:
    return any(span.start < stop and start < span.stop for start, stop in others)


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Keeps the text's own lines."""


if __name__ == "__main__":
    main()
