"""First sync, memory and a refresh of forecasts: python -m bench.sync.

The real `archimedes extender` against a simulated API server (`bench.rig.cluster`) and Prometheus
(`bench.rig.usage`), on loopback. In turns, in one run:

- first sync: seconds of a core from the process's start until it is ready, less those of a process
  that has nothing to list, as a multiple of reading the same pages and parsing them with
  `orjson.loads` (budget: 3);
- resident memory, highest and after the refresh (budget: 2 GB);
- refresh: seconds of a core of one refresh, all nodes and horizons (budget: 30), in which a new
  window of usage is read and a learned model forecasts.

    python -m bench.sync --nodes 5000 --pods 150000 --rounds 3      the full size
"""

from __future__ import annotations

import argparse
import gc
import http.client
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import orjson

from bench.rig import world
from bench.rig.server import Span, read_journal
from tests.controlplane.process import wait_until

GIB = 2**30
_PAGE = 500
_REFRESH_SECONDS = 900.0
_FIRST_REFRESHES = 2
"""Refreshes that are not measured: those that read the past."""


class Round(NamedTuple):
    """Seconds of a core, and bytes."""

    parse: float
    sync: float
    refresh: float
    highest: int
    after: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archimedes-sync-") as name:
        folder = Path(name)
        model = world.train(folder / "models", 1)[0]
        print(f"{options.nodes:,} nodes, {options.pods:,} pods")
        names = ("parse s", "sync s", "ratio", "refresh s", "RSS, GiB", "after")
        print(" ".join(f"{name:>9}" for name in names))
        rounds = []
        for number in range(options.rounds):
            place = folder / str(number)
            place.mkdir()
            found = measure(options.nodes, options.pods, place, model.parent)
            print_row(found)
            rounds.append(found)
        ratio = median(found.sync / found.parse for found in rounds)
        refresh = median(found.refresh for found in rounds)
        highest = max(found.highest for found in rounds)
        print(
            f"first sync {ratio:.1f} x raw JSON (budget 3), refresh {refresh:.1f} s of a core"
            f" (budget 30), {highest / GIB:.2f} GiB at most (budget 2)"
        )


def print_row(found: Round) -> None:
    """One round's line."""
    print(
        f"{found.parse:>9.2f} {found.sync:>9.2f} {found.sync / found.parse:>9.1f}"
        f" {found.refresh:>9.1f} {found.highest / GIB:>9.2f} {found.after / GIB:>9.2f}"
    )


def measure(nodes: int, pods: int, folder: Path, models: Path) -> Round:
    """One round: the raw pages, an empty cluster, the cluster."""
    sizes = folder, nodes, pods
    with world.cluster(*sizes) as cluster, world.prometheus(*sizes) as prometheus:
        parse = parse_pages(cluster.port)
        with world.cluster(folder, 1, 1) as empty:
            start = sync_cpu(empty, folder, models)
        sync = sync_cpu(cluster, folder, models) - start
        refresh, highest, after = refresh_cpu(cluster, prometheus, folder, models)
    return Round(parse, sync, refresh, highest, after)


def parse_pages(port: int) -> float:
    """Seconds of a core for reading and parsing the same pages, and nothing else."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    gc.disable()  # what this process holds besides must not make it look slow
    began = time.process_time()
    for kind in ("nodes", "pods"):
        token = ""
        while True:
            connection.request("GET", f"/api/v1/{kind}?limit={_PAGE}&continue={token or 0}")
            page = orjson.loads(connection.getresponse().read())
            token = page["metadata"]["continue"]
            if not token:
                break
    took = time.process_time() - began
    gc.enable()
    return took


def sync_cpu(cluster: world.Service, folder: Path, models: Path) -> float:
    """Seconds of a core from the start until everything is listed; there is no usage."""
    with world.extender(folder, _COMMAND, settings(cluster, folder, models, "")) as extender:
        extender.process.wait_ready(lambda: extender.answers("/readyz"), _REFRESH_SECONDS)
        return extender.cpu_seconds()


def refresh_cpu(
    cluster: world.Service, prometheus: world.Service, folder: Path, models: Path
) -> tuple[float, int, int]:
    """Seconds of a core of a refresh with a new window; highest and last bytes of memory."""
    journal = folder / "journal.jsonl"
    command = ["bench.rig.server", "SETTINGS", str(journal), *map(str, sorted(models.iterdir()))]
    usage = {**settings(cluster, folder, models, prometheus.url), "refresh_seconds": 20}
    with world.extender(folder, command, usage) as extender:

        def refreshes() -> list[Span]:
            spans = read_journal(journal) if journal.exists() else []
            return [span for span in spans if span.what == "refresh"][_FIRST_REFRESHES:]

        found = wait_until(refreshes, _REFRESH_SECONDS, "forecasts were refreshed", interval=1)
        return found[0].own, extender.resident(), extender.resident("VmRSS")


def settings(cluster: world.Service, folder: Path, models: Path, usage: str) -> world.Json:
    """Of the extender; ``usage``: Prometheus' address, or empty."""
    return {
        "kubeconfig": str(world.kubeconfig(folder, cluster.url)),
        "prometheus": {"url": usage, "history_days": 1, "delay_seconds": 0},
        "model": {"directory": str(models)},
    }


_COMMAND = ["archimedes", "extender", "--config", "SETTINGS"]

if __name__ == "__main__":
    main()
