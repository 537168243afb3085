"""What people may write where a model is wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.artifact import save_model
from models.classical import CLASSICAL
from models.errors import ArtifactError, RegistryError
from models.refs import resolve_model
from models.registry import Registry
from models.shipped import shipped

NO_REGISTRY = "sqlite:////nonexistent/archimedes.db"


def test_a_classical_name_needs_no_registry() -> None:
    assert resolve_model("n-sigma-7d", NO_REGISTRY).forecaster == CLASSICAL["n-sigma-7d"]


def test_a_folder_needs_no_registry(tmp_path: Path) -> None:
    save_model(shipped(CLASSICAL["koordinator"]), tmp_path / "m")
    assert resolve_model(str(tmp_path / "m"), NO_REGISTRY).forecaster.name == "koordinator"


def test_a_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(shipped(CLASSICAL["n-sigma-24h"]), tmp_path / "koordinator")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("koordinator", NO_REGISTRY).forecaster.name == "n-sigma-24h"


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"without manifest\.json"):
        resolve_model(str(tmp_path), NO_REGISTRY)


def test_a_changed_folder_is_refused(tmp_path: Path) -> None:
    save_model(shipped(CLASSICAL["koordinator"]), tmp_path / "m")
    manifest = tmp_path / "m" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"koordinator"', '"borg-default"'))
    with pytest.raises(ArtifactError):
        resolve_model(str(tmp_path / "m"), NO_REGISTRY)


@pytest.mark.parametrize("ref", ["champion", "7", "no-such-name"])
def test_anything_else_is_asked_of_the_registry(ref: str) -> None:
    with pytest.raises(RegistryError):
        resolve_model(ref, NO_REGISTRY)


def test_a_mistyped_predictor_is_told_which_was_meant() -> None:
    said = r"^'koordinater' is neither .* \(did you mean koordinator\?\), and it cannot be had"
    with pytest.raises(RegistryError, match=said):
        resolve_model("koordinater", NO_REGISTRY)
    with pytest.raises(RegistryError, match=r"^there is no registry at"):
        resolve_model("champion", NO_REGISTRY)


def test_versions_and_aliases_come_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def pull(self: Registry, ref: str, folder: Path) -> str:
        asked.append((self.tracking_uri, ref))
        save_model(shipped(CLASSICAL["koordinator"]), folder / "12")
        return "12"

    monkeypatch.setattr(Registry, "pull", pull)
    for ref in ("12", "challenger"):
        model = resolve_model(ref, NO_REGISTRY)
        assert (model.version, model.forecaster.name) == ("12", "koordinator")
    assert asked == [(NO_REGISTRY, "12"), (NO_REGISTRY, "challenger")]
