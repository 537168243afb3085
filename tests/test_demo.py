"""The demo as a newcomer meets it: one command, a table, a page; and what it says of bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from archimedes.demo.world import build_world, generated
from models.errors import TraceError
from models.generator import ClusterSpec, generate_trace
from models.trace import usage_grid

KEYS = {
    "requested_core_hours",
    "used_core_hours",
    "reclaimed_core_hours",
    "reclaimed_share",
    "violation_rate",
    "offline_pods_placed",
    "offline_pods_waiting",
    "machines",
    "machines_saved",
    "decision_ms_p50",
    "decision_ms_p99",
    "champion_before",
    "champion_after",
    "verdict",
}


def archimedes(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "archimedes", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float | str]]:
    folder = tmp_path_factory.mktemp("demo")
    done = archimedes("demo", "--nodes", "8", "--hours", "6", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, json.loads(done.stdout)


def test_the_object_has_the_documented_fields(ran: tuple[Path, dict[str, float | str]]) -> None:
    assert set(ran[1]) == KEYS


def test_the_figures_belong_together(ran: tuple[Path, dict[str, float | str]]) -> None:
    found = ran[1]
    used, reclaimed = float(found["used_core_hours"]), float(found["reclaimed_core_hours"])
    capacity = 8 * 16 * 6  # nodes x cores x hours
    assert 0 < used < float(found["requested_core_hours"]) <= capacity
    assert 0 < reclaimed <= capacity - used
    assert float(found["reclaimed_share"]) == pytest.approx(reclaimed / (capacity - used))
    assert int(found["machines_saved"]) >= 0
    assert found["verdict"] in {"promote", "keep"}
    promoted = found["verdict"] == "promote"
    assert (found["champion_after"] != found["champion_before"]) == promoted


def test_the_registry_holds_both_versions(ran: tuple[Path, dict[str, float | str]]) -> None:
    (database,) = ran[0].glob("demo-output/*/mlflow.db")
    done = archimedes(
        "models", "list", "--json", "--tracking-uri", f"sqlite:///{database}", cwd=ran[0]
    )
    listed = json.loads(done.stdout)
    assert len(listed["versions"]) == 2
    champion = [v["version"] for v in listed["versions"] if "champion" in v["aliases"]]
    assert champion == [ran[1]["champion_after"]]


def test_the_page_shows_its_plots_in_a_browser(
    ran: tuple[Path, dict[str, float | str]], tmp_path: Path
) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "chromium is not on PATH: `apt-get install chromium` brings it"
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(reason)
        pytest.skip(reason)
    (page,) = ran[0].glob("demo-output/*/demo.html")
    text = page.read_text()
    assert "http" not in text.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("https://matplotlib.org", "").replace(
        "http://creativecommons.org", ""
    )  # nothing is fetched; these are SVG's own names
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    done = subprocess.run(
        [chromium, *flags, f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("<svg") == 2
    assert "reclaimed: run by offline pods" in done.stdout


def test_nobody_learns_from_what_is_still_to_come() -> None:
    world = build_world(generated(4, 6.0, 1), 6.0, None, 1)
    assert world.trial < world.start < world.middle < world.stop
    past = world.past(world.trial)
    assert usage_grid(past).end <= world.trial
    assert past.pods["start"].dt.epoch("s").max() < world.trial  # type: ignore[operator]


def test_jobs_are_offered_to_a_trace_that_says_where_pods_may_run() -> None:
    trace = generated(4, 6.0, 1)
    wanted = pl.lit('{"disk":"fast"}')
    online = trace.pods.filter(pl.col("tier") == "online")
    online = online.with_columns(labels=wanted, node_selector=wanted)
    world = build_world(replace(trace, pods=online), 6.0, None, 1)
    assert (world.trace.pods["tier"] == "offline").any()
    # The demo's scheduler knows no selectors, so neither do the replays that it is compared with.
    assert world.scenario().constraints is None


def test_a_trace_with_one_pod_is_refused() -> None:
    trace = generate_trace(ClusterSpec(nodes=1, days=6))
    one = trace.pods.head(1)
    usage = None if trace.usage is None else trace.usage.filter(pl.col("pod") == one["pod"][0])
    with pytest.raises(TraceError, match="1 online pods"):
        build_world(replace(trace, pods=one, usage=usage), 6.0, None, 0)


def test_a_trace_that_is_too_short_is_refused() -> None:
    with pytest.raises(TraceError, match="fewer --hours"):
        build_world(generate_trace(ClusterSpec(nodes=2, days=2)), 24.0, None, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--trace", "nowhere"],
        ["trainer", "evaluate", "--trace", "nowhere"],
        ["trainer", "train", "--trace", "nowhere", "--out", "x"],
        ["trainer", "import", "bitbrains", "nowhere", "out"],
        ["shadow", "replay", "--trace", "nowhere"],
        ["shadow", "compare", "--trace", "nowhere", "--champion", "vpa", "--challenger", "vpa"],
        ["models", "list", "--tracking-uri", "sqlite:///nowhere.db"],
        ["models", "promote", "7", "--reason", "x", "--tracking-uri", "sqlite:///nowhere.db"],
        ["extender", "--config", "nowhere.yaml"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_bad_input_gives_one_sentence_and_exit_code_2(arguments: list[str], tmp_path: Path) -> None:
    done = archimedes(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert "nowhere" in done.stderr
