"""`archimedes shadow`, as people and programs call it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.artifact import save_model
from models.classical import CLASSICAL
from models.errors import ArchimedesError, RegistryError
from models.grid import DAY
from models.registry import Registry
from models.shipped import shipped
from models.trace import Trace, write_trace
from shadow.cli import app
from shadow.compare import Comparison
from shadow.figures import Figures
from tests.mlflow_server import closed_port
from tests.shadow_traces import pods_table, tidal_trace, usage_table


def run(*arguments: str) -> str:
    """Stdout of a command that succeeds."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def problem(*arguments: str) -> str:
    """The one sentence of a command that fails."""
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, ArchimedesError), result.output
    sentence = str(result.exception)
    assert "\n" not in sentence
    return sentence


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("trace") / "tidal"
    write_trace(tidal_trace(jobs=120), folder)
    return str(folder)


def test_replay_prints_one_object(trace: str) -> None:
    found = json.loads(run("replay", "--trace", trace, "--json", "--hours", "6"))
    assert set(found) == set(Figures.__struct_fields__)
    assert found["model_version"] == "koordinator"
    assert (found["hours"], found["nodes"]) == (6.0, 4)
    assert 0 < found["offline_pods"] < 120  # those that arrive in six of the hours
    assert found["reclaimed_core_hours"] > 0
    assert found["decision_ms_p50"] > 0


def test_replay_prints_a_table(trace: str) -> None:
    shown = run("replay", "--trace", trace, "--hours", "3", "--model", "requests")
    for name in ("CPU reclaimed", "forecasts violated", "queueing time", "decision latency"):
        assert name in shown


def test_several_seeds_give_their_mean(trace: str) -> None:
    common = ("replay", "--trace", trace, "--json", "--hours", "3", "--model", "requests")
    one, other, both = (
        json.loads(run(*common, *more))["decisions"]
        for more in (["--seed", "4"], ["--seed", "5"], ["--seed", "4", "--seeds", "2"])
    )
    assert both == round((one + other) / 2)


def test_replay_counts_machines(trace: str) -> None:
    found = json.loads(
        run("replay", "--trace", trace, "--model", "trailing-max-24h", "--machines", "--json")
    )
    assert found["machines"] <= 4
    assert found["machines_saved"] >= 0


def test_options_reach_the_replay(trace: str) -> None:
    arguments = ["--nodes", "3", "--node-cpu", "12", "--seed", "2", "--refresh-minutes", "60"]
    found = json.loads(
        run("replay", "--trace", trace, "--json", "--hours", "2", *arguments, "--blur", "0.5")
    )
    assert found["nodes"] == 3
    assert found["allocatable_core_hours"] == 72.0


def test_a_policy_file_may_be_yaml_or_json(trace: str, tmp_path: Path) -> None:
    yaml, as_json = tmp_path / "p.yaml", tmp_path / "p.json"
    yaml.write_text("ceiling: 0.2\n")
    as_json.write_text('{"ceiling": 0.2}')
    common = ("replay", "--trace", trace, "--json", "--hours", "6")
    reclaimed = [
        json.loads(run(*common, *more))["reclaimed_core_hours"]
        for more in ([], ["--policy", str(yaml)], ["--policy", str(as_json)])
    ]
    assert reclaimed[0] > reclaimed[1] == reclaimed[2]


def test_a_model_folder_can_be_replayed(trace: str, tmp_path: Path) -> None:
    save_model(shipped(CLASSICAL["trailing-max-24h"]), tmp_path / "model")
    arguments = ("--trace", trace, "--json", "--hours", "6", "--model")
    by_folder = json.loads(run("replay", *arguments, str(tmp_path / "model")))
    by_name = json.loads(run("replay", *arguments, "trailing-max-24h"))
    assert by_folder["reclaimed_core_hours"] == by_name["reclaimed_core_hours"]
    assert by_folder["model_version"] != by_name["model_version"]


def test_compare_prints_a_verdict(trace: str) -> None:
    sides = ("--champion", "requests", "--challenger", "trailing-max-7d")
    found = json.loads(run("compare", "--trace", trace, *sides, "--hours", "12", "--json"))
    assert set(found) == set(Comparison.__struct_fields__)
    assert found["verdict"] in {"promote", "keep"}
    assert found["reasons"]
    shown = run("compare", "--trace", trace, *sides, "--hours", "12")
    assert f"verdict: {found['verdict']}" in shown
    assert "CPU reclaimed" in shown


def test_compare_takes_a_policy_for_each_side(trace: str, tmp_path: Path) -> None:
    strict = tmp_path / "strict.yaml"
    strict.write_text("ceiling: 0.2")
    model = "trailing-max-7d"
    arguments = ("compare", "--trace", trace, "--champion", model, "--challenger", model)
    more = ("--champion-policy", str(strict), "--hours", "12", "--json")
    found = json.loads(run(*arguments, *more))
    assert found["reclaimed_core_hours"]["value"] > 0


def test_a_trace_of_one_pod(tmp_path: Path) -> None:
    pods = pods_table([("only", "online", 2.0, None, 0, 4 * 86_400, None)])
    usage = usage_table({"only": [0.5] * 4 * DAY})
    write_trace(Trace("one", None, pods, usage), tmp_path / "one")
    found = json.loads(run("replay", "--trace", str(tmp_path / "one"), "--json"))
    assert (found["nodes"], found["online_pods"]) == (1, 1)
    assert found["requested_core_hours"] == pytest.approx(48.0)


def test_a_trace_without_usage(tmp_path: Path) -> None:
    rows = [
        ("web", "online", 2.0, None, 0, 7200, None),
        ("job", "offline", 0.5, None, 60, 3660, None),
    ]
    write_trace(Trace("bare", None, pods_table(rows), None), tmp_path / "bare")
    found = json.loads(run("replay", "--trace", str(tmp_path / "bare"), "--json"))
    assert found["model_version"] == "requests"
    assert found["reclaimed_core_hours"] == pytest.approx(0.5)
    assert found["violation_rate"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hours", "-1"], "hours"),
        (["--hours", "inf"], "--hours: expected float <= 87840"),
        (["--seed", "-1"], "--seed: expected int >= 0"),
        (["--node-cpu", "inf"], "--node-cpu: expected float <= 4096"),
        (["--node-cpu", "1e300"], "--node-cpu: expected float <= 4096"),
        (["--offline-load", "inf"], "--offline-load: expected float <= 100"),
        (["--offline-load", "1e9"], "--offline-load: expected float <= 100"),
        (["--blur", "inf"], "--blur: expected float <= 10"),
        (["--refresh-minutes", "7"], "--refresh-minutes 7: must be a multiple of 5"),
        (["--nodes", "0"], "nodes"),
        (["--offline-load", "-0.5"], "--offline-load: expected float >= 0"),
        (["--blur", "-2"], "--blur: expected"),
        (["--nodes-to-score", "101"], "--nodes-to-score: expected int <= 100, got 101"),
    ],
)
def test_an_option_out_of_range_is_named(trace: str, arguments: list[str], says: str) -> None:
    assert says in problem("replay", "--trace", trace, *arguments)


@pytest.mark.parametrize("content", ["ceiling: 7", "celing: 0.5", "- 1", "{", "\xff: \x00"])
def test_a_bad_policy_file_is_named(trace: str, tmp_path: Path, content: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(content, encoding="latin-1")
    assert str(file) in problem("replay", "--trace", trace, "--policy", str(file))


@pytest.mark.parametrize("content", ["ceiling: 0.5\nceiling: 0.9", '{"ceiling": 1, "ceiling": 1}'])
def test_a_field_that_stands_twice_is_refused(trace: str, tmp_path: Path, content: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(content)
    said = problem("replay", "--trace", trace, "--policy", str(file))
    assert f"policy file {file} is not YAML: ceiling stands there twice" in said


def test_what_is_not_there_is_named(trace: str, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in problem("replay", "--trace", nowhere)
    assert nowhere in problem("replay", "--trace", trace, "--policy", nowhere)
    database = f"sqlite:///{tmp_path}/none.db"
    said = problem("replay", "--trace", trace, "--model", "champion", "--tracking-uri", database)
    assert "none.db" in said
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    "command", [["redecide"], ["extract", "out"], ["follow", "--prometheus", "http://p:9090"]]
)
def test_a_decision_log_that_is_not_there_is_named(command: list[str]) -> None:
    assert problem(*command, "--decisions", "nowhere.jsonl") == (
        "decision log nowhere.jsonl does not exist; name decision_log's file"
    )


# Pages and MLflow runs


def elements(page: Path, tag: str) -> int:
    """How many elements of a kind an HTML file has that is whole and fetches nothing."""
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert not re.findall(r"(?:src|href)=\"(?!#)", text)
    return text.count(f"<{tag}")


def test_replay_writes_a_page(trace: str, tmp_path: Path) -> None:
    page = tmp_path / "new" / "replay.html"
    run("replay", "--trace", trace, "--hours", "6", "--html", str(page))
    assert elements(page, "svg") == 4
    text = page.read_text()
    for shown in ("CPU of the cluster", "Balance between the nodes", "queueing time", "tidal"):
        assert shown in text


def test_a_trace_without_usage_has_a_page(tmp_path: Path) -> None:
    rows = [
        ("web<b>", "online", 2.0, None, 0, 7200, None),
        ("job", "offline", 0.5, None, 60, 3660, None),
    ]
    write_trace(Trace("bare", None, pods_table(rows), None), tmp_path / "bare & <b>")
    page = tmp_path / "replay.html"
    run("replay", "--trace", str(tmp_path / "bare & <b>"), "--html", str(page))
    assert elements(page, "svg") == 2  # no utilisation and no balance without usage
    assert "<b>" not in page.read_text()


def test_compare_writes_a_page_with_the_verdict_and_the_groups(trace: str, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    sides = ("--champion", "requests", "--challenger", "trailing-max-7d", "--seeds", "2")
    arguments = ("compare", "--trace", trace, *sides, "--hours", "12", "--html", str(page))
    found = json.loads(run(*arguments, "--json"))
    assert [s["seed"] for s in found["seeds"]] == [0, 1]
    assert elements(page, "svg") == 3
    text = page.read_text()
    assert f"verdict: {found['verdict']}" in text
    for cohort in found["cohorts"]:
        assert f"{cohort['by']}: {cohort['cohort']}" in text


@pytest.mark.parametrize(
    "command", [("replay",), ("compare", "--champion", "vpa", "--challenger", "vpa")]
)
def test_a_page_that_cannot_be_written_is_named_and_loses_no_result(
    trace: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    page = str(tmp_path / "file" / "replay.html")
    more = ("--trace", trace, "--hours", "1", "--html", page, "--json")
    result = CliRunner().invoke(app, [*command, *more])
    assert isinstance(result.exception, ArchimedesError), result.output
    assert page in str(result.exception)
    assert json.loads(result.stdout)


def test_replay_and_compare_are_logged_as_runs(trace: str, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    more = ("--hours", "6", "--log", "--tracking-uri", uri, "--json")
    replayed = json.loads(run("replay", "--trace", trace, "--machines", *more))
    sides = ("--champion", "requests", "--challenger", "trailing-max-7d")
    compared = json.loads(run("compare", "--trace", trace, *sides, *more))
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    logged = client.get_run(replayed["run_id"])
    assert logged.data.params["model"] == "koordinator"
    assert logged.data.params["target"] == "0.01"
    metrics = logged.data.metrics
    assert metrics["machines"] == replayed["machines"]
    assert metrics["reclaimed_core_hours"] == pytest.approx(replayed["reclaimed_core_hours"])
    assert metrics["utilisation_after.mean"] == pytest.approx(replayed["utilisation_after"]["mean"])
    files = {item.path for item in client.list_artifacts(replayed["run_id"])}
    assert files == {"replay.json", "replay.html"}
    judged = client.get_run(compared["run_id"])
    assert judged.data.params["verdict"] == compared["verdict"]
    gain = compared["reclaimed_core_hours"]["low"]
    assert judged.data.metrics["reclaimed_core_hours.low"] == pytest.approx(gain)
    files = {item.path for item in client.list_artifacts(compared["run_id"])}
    assert files == {"comparison.json", "comparison.html"}


SIDES = ("compare", "--champion", "requests", "--challenger", "trailing-max-7d")


@pytest.mark.parametrize("command", [("replay",), SIDES])
def test_a_registry_that_goes_meanwhile_loses_no_result(
    trace: str, tmp_path: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> str:
        raise RegistryError("MLflow has gone")

    monkeypatch.setattr(Registry, "log_run", gone)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    more = ("--trace", trace, "--hours", "1", "--log", "--tracking-uri", uri, "--json")
    result = CliRunner().invoke(app, [*command, *more])
    assert isinstance(result.exception, RegistryError), result.output
    assert json.loads(result.stdout)


@pytest.mark.parametrize("command", [("replay",), SIDES])
def test_an_unreachable_registry_is_reported_before_replaying(
    trace: str, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for function in ("shadow.seeds.replay_seeds", "shadow.compare.replay_sides"):
        monkeypatch.setattr(function, lambda *_, **__: pytest.fail("replayed first"))
    uri = f"http://127.0.0.1:{closed_port()}"
    result = CliRunner().invoke(app, [*command, "--trace", trace, "--log", "--tracking-uri", uri])
    assert isinstance(result.exception, RegistryError), result.output
