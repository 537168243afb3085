"""`shadow follow` as operators run it: a process, a real Prometheus, a real MLflow, and kills."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from extender.recording import Recorded
from extender.wire import decode_binding
from models.artifact import save_model
from models.classical import CLASSICAL
from models.policy import Policy
from models.prometheus import PrometheusSource
from models.registry import SHADOW_TAG, Registry
from models.shipped import shipped
from models.usage_source import PrometheusSettings
from tests.controlplane.backfill import cumulated, write_openmetrics
from tests.controlplane.process import wait_until
from tests.controlplane.prometheus import Prometheus
from tests.extender_world import World, as_node, as_pod, binding, node_json, pod_json
from tests.mlflow_server import closed_port
from tests.test_recording import entries

NODES = ("n1", "n2", "n3", "n4")
MINUTE = 60.0
REFRESHES = 14
PODS = 50  # after each refresh

CHAMPION = "koordinator"

Figures = dict[str, dict[str, float]]
"""By challenger; all were on trial against the same champion."""


@pytest.fixture(name="now")
def at_a_windows_begin() -> float:
    """The present, to a whole window."""
    return time.time() // 300 * 300


@pytest.fixture(name="prometheus")
def with_a_past(tmp_path: Path, now: float) -> Iterator[str]:
    """The address of a server with seven hours of four pods' usage, a wave each."""
    times = [now - 7 * 3600 + MINUTE * minute for minute in range(7 * 60 + 5)]
    history, nodes = {}, {}
    for at, node in enumerate(NODES):
        key = ("default", f"on-{node}")
        wave = [2.0 + math.sin(t / 900 + at) + at / 4 for t in times]
        history[key], nodes[key] = cumulated(times, wave), node
    past = write_openmetrics(tmp_path / "past", history, nodes)
    with Prometheus(tmp_path / "prometheus", backfill=past) as server:
        yield server.url


def decided(folder: Path) -> int:
    """How many decisions a recording holds."""
    return sum(isinstance(entry, Recorded) for entry in entries(folder))


class Production:
    """A real extender in this process: its clock began 170 minutes before the present.

    So after its 70 minutes the outcome of an hour is known, and that of three hours is not, however
    long the test takes.
    """

    def __init__(self, log: Path, prometheus: str, now: float) -> None:
        settings = PrometheusSettings(url=prometheus)
        source = PrometheusSource(settings)
        begin = now - 170 * MINUTE
        self.world = World(
            NODES,
            usage=source,
            now=begin,
            decision_log=str(log),
            prometheus=settings,
            candidates=3,
            watch_max_age=600.0,
        )
        for node in NODES:
            pod = pod_json(f"on-{node}", cpu="4", node=node, phase="Running")
            self.world.cluster.put_pod(as_pod(pod))
        self.world.sync()
        self._log, self._made = log, 0

    async def close(self) -> None:
        """Write what waits."""
        await self.world.server.close()

    async def run(self, refreshes: int) -> None:
        """Refresh every five minutes, and place pods after each."""
        server = self.world.server
        for _ in range(refreshes):
            for node in NODES:  # as a bookmark would: the watch is alive
                self.world.cluster.put_node(as_node(node_json(node)))
            await server.refresher.refresh()
            for _ in range(PODS):
                self.world.now += 1.0
                await self._place()
            self.world.now += 300.0 - PODS
        server.decisions.flush()
        folder = Path(f"{self._log}.recording")
        wait_until(lambda: decided(folder) == self._made, 60, "all decisions are recorded")

    async def _place(self) -> None:
        """One pod of an hour that asks for hardly anything, bound to its first candidate."""
        world, name = self.world, f"p{self._made}"
        self._made += 1
        pod = pod_json(name, 1, annotations={"archimedes.dev/expected-duration": "1h"})
        node = world.filter(pod)["NodeNames"][0]
        world.cluster.put_pod(as_pod(pod_json(name, 1)))
        await world.server.binder.bind(decode_binding(msgspec.json.encode(binding(pod, node))))


@pytest.fixture(name="log")
def log_file(tmp_path: Path) -> Path:
    """Where the extender logs its decisions."""
    return tmp_path / "decisions.jsonl"


@pytest.fixture(name="production")
async def with_a_champion(log: Path, prometheus: str, now: float) -> AsyncIterator[Production]:
    """An extender with a champion in service."""
    production = Production(log, prometheus, now)
    refresher = production.world.server.refresher
    await refresher.refresh()
    await refresher.install(shipped(CLASSICAL[CHAMPION], Policy()), "test")
    yield production
    await production.close()


class Shadow:
    """Runs of the command with one state file."""

    def __init__(self, state: Path, log: Path, prometheus: str, registry: str) -> None:
        self.state = state
        self.seconds, self.said = 0.0, ""  # of the last run
        self._command = [
            *(sys.executable, "-m", "archimedes", "shadow", "follow", "--once", "--json"),
            *("--decisions", str(log), "--prometheus", prometheus),
            *("--tracking-uri", registry, "--state", str(state)),
        ]

    def run(self) -> Figures:
        """Let it do what there is to do."""
        began = time.monotonic()
        done = subprocess.run(self._command, capture_output=True, timeout=120, check=False)
        self.seconds = time.monotonic() - began
        assert done.returncode == 0, done.stderr.decode()
        self.said = done.stderr.decode()
        found: dict[str, Figures] = json.loads(done.stdout)
        return {challenger: figures[CHAMPION] for challenger, figures in found.items()}

    def killed(self, after: float) -> bool:
        """Kill it so many seconds after its start; whether it was still running."""
        with subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(after)
            process.kill()
        return process.returncode == -9

    def killed_after_save(self, after: float) -> bool:
        """Kill it so many seconds after it has saved something; whether it was still running."""
        before = self._saved()
        with subprocess.Popen(self._command, stdout=subprocess.DEVNULL) as process:
            wait_until(
                lambda: process.poll() is not None or self._saved() != before,
                120,
                "a state is saved",
                interval=0.002,
            )
            time.sleep(after)
            process.kill()
        return process.returncode == -9

    def _saved(self) -> list[str]:
        folder = self.state.with_name(self.state.name + ".pending")
        files = [*folder.glob("*"), *self.state.parent.glob(self.state.name)]
        return sorted(f"{file} {file.stat().st_mtime_ns}" for file in files if file.exists())


def register(registry: Registry, folder: Path, name: str) -> str:
    """A classical predictor as a version, which becomes the challenger."""
    save_model(shipped(CLASSICAL[name], Policy(slack_weight=0.0)), folder / name)
    return registry.register(folder / name, params={}, metrics={}, tags={})


@pytest.mark.slow
@pytest.mark.usefixtures("prometheus_installed")
async def test_kills_change_no_figure(
    tmp_path: Path, production: Production, log: Path, prometheus: str, server_uri: str
) -> None:
    registry = Registry(server_uri)
    first = register(registry, tmp_path, "trailing-max-24h")
    await production.run(REFRESHES - 1)

    whole = Shadow(tmp_path / "whole.state", log, prometheus, server_uri)
    expected = whole.run()[first]
    decisions = PODS * (REFRESHES - 1)
    assert (expected["decisions"], expected["unscored"]) == (decisions, 0)
    assert expected["joined"] == expected["bound"] == decisions
    assert expected["champion_judged"] >= 2 * len(NODES)  # two half hours at least, 1 h each
    assert expected["champion_regret_cores"] != expected["challenger_regret_cores"]

    shadow = Shadow(tmp_path / "killed.state", log, prometheus, server_uri)
    rng = np.random.default_rng(7)
    kills = [shadow.killed_after_save(after) for after in rng.uniform(0.0, 0.1, 4)]
    kills += [shadow.killed(after) for after in rng.uniform(0.0, whole.seconds, 4)]
    assert sum(kills) >= 4
    away = Shadow(shadow.state, log, prometheus, f"http://127.0.0.1:{closed_port()}")
    assert away.run() == {first: expected}  # MLflow is down: the copy decides, the figures wait
    assert shadow.run() == {first: expected}
    assert tags(registry, first) == {name: f"{value:.6g}" for name, value in expected.items()}

    second = register(registry, tmp_path, "koordinator")  # the alias moves on
    await production.run(1)
    await production.close()
    both = shadow.run()
    assert "on trial" in shadow.said
    assert both[first]["decisions"] == decisions
    assert both[second]["decisions"] == PODS
    assert tags(registry, second)["decisions"] == str(PODS)

    registry.promote(second, "the test is over")  # so nobody is on trial
    assert shadow.run() == both
    assert "there is no challenger" in shadow.said


def tags(registry: Registry, version: str) -> dict[str, str]:
    """The live shadow's tags of a version."""
    (found,) = [each for each in registry.versions() if each.version == version]
    prefix = f"{SHADOW_TAG}.{CHAMPION}."
    return {k.removeprefix(prefix): v for k, v in found.tags.items() if k.startswith(prefix)}
