"""The tail of a decision log: rotation, half-written lines, and figures in the registry."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import pytest

from extender.decision_log import DecisionLog
from models.artifact import save_model
from models.classical import CLASSICAL
from models.errors import ArchimedesError, UnknownVersionError
from models.registry import SHADOW_TAG, Registry
from models.shipped import shipped
from shadow.tail import Position, follow_log
from tests.test_decision_log import decision


def write(path: Path, *pods: str) -> None:
    """Append decisions of pods."""
    log = DecisionLog(path)
    for pod in pods:
        log.append(decision(pod))
    log.close()


BEGIN = Position()


def read(path: Path, position: Position = BEGIN) -> tuple[list[str], Position]:
    """The pods of the decisions after a position, and the position after them."""
    found = list(follow_log(path, position))
    return [record.pod for record, _ in found], found[-1][1] if found else position


def test_a_half_written_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    write(path, "a", "b")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    first, position = read(path)
    path.write_bytes(whole)
    assert (first, read(path, position)[0]) == (["a"], ["b"])


def test_a_rotated_log_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    write(path, "a")
    _, position = read(path)
    write(path, "b")
    path.rename(tmp_path / "d.jsonl.1")
    assert read(path, position)[0] == ["b"]
    write(path, "c")
    pods, after = read(path, position)
    assert pods == ["b", "c"]
    assert read(path, after)[0] == []


def rotate_at(open_number: int, path: Path, patch: pytest.MonkeyPatch) -> None:
    """Rotate a log just before the reader opens its n-th file."""
    real, opened = Path.open, list[Path]()

    def rotating(self: Path, mode: str) -> IO[bytes]:
        opened.append(self)
        if len(opened) == open_number:
            path.replace(f"{path}.1")
        return real(self, mode)

    patch.setattr(Path, "open", rotating)


@pytest.mark.parametrize("open_number", [1, 2])
def test_a_log_that_is_rotated_while_it_is_opened_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_number: int
) -> None:
    path = tmp_path / "d.jsonl"
    write(tmp_path / "d.jsonl.1", "a")
    write(path, "b")
    _, position = read(path)
    write(path, "c")
    with monkeypatch.context() as patch:
        rotate_at(open_number, path, patch)
        first, position = read(path, position)
    write(path, "d")
    assert first + read(path, position)[0] == ["c", "d"]
    with monkeypatch.context() as patch:
        rotate_at(open_number, path, patch)
        assert read(path)[0] == ["d"]  # what was rotated twice is gone


def test_a_line_that_is_no_decision_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"kind":"other"}\n')
    with pytest.raises(ArchimedesError, match="line at byte 0 is no record"):
        read(path)


def test_figures_stand_on_the_version_and_once_on_its_run(
    database_uri: str, tmp_path: Path
) -> None:
    registry = Registry(database_uri)
    save_model(shipped(CLASSICAL["koordinator"]), tmp_path / "model")
    version = registry.register(tmp_path / "model", params={}, metrics={}, tags={})
    for _ in range(2):  # logged again after a kill: the same point
        registry.log_shadow(version, "7", {"agreement": 0.5, "overlap": math.nan}, 1_700_000_000.0)
    registry.log_shadow(version, "7", {"agreement": 0.75}, 1_700_000_300.0)
    registry.log_shadow(version, "8", {"agreement": 0.25}, 1_700_000_600.0)  # another champion
    with pytest.raises(UnknownVersionError, match="version 99 is not in"):
        registry.log_shadow("99", "7", {"agreement": 0.5}, 1_700_000_600.0)
    (found,) = registry.versions()
    assert found.tags[f"{SHADOW_TAG}.7.agreement"] == "0.75"
    assert found.tags[f"{SHADOW_TAG}.8.agreement"] == "0.25"

    from mlflow import MlflowClient

    client = MlflowClient(database_uri, database_uri)
    experiment = client.get_experiment_by_name("archimedes")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{SHADOW_TAG}` = '{version}'")
    points = {
        run.data.tags[f"{SHADOW_TAG}.champion"]: [
            point.value for point in client.get_metric_history(run.info.run_id, "shadow.agreement")
        ]
        for run in runs
    }
    assert points == {"7": [0.5, 0.75], "8": [0.25]}
