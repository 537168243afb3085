"""A model as a folder: what was saved is what is loaded, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightgbm as lgb
import numpy as np
import pytest

from models import check
from models.arrays import Floats
from models.artifact import load_model, save_model
from models.classical import CLASSICAL
from models.errors import ArtifactError
from models.features import input_names
from models.forecaster import Prediction
from models.history import History
from models.model import Model
from models.policy import HORIZONS
from models.quantile import QuantileForecaster
from models.shipped import shipped
from models.tree_text import check_tree_text, trees_only
from tests.learned import small_model
from tests.random_histories import random_history


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "model"
    save_model(small_model(), folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def forecasts(model: Model) -> Floats:
    prediction = model.forecaster.predict(random_history(1), HORIZONS)
    return prediction.at(model.calibration.knobs(model.policy.target))


def test_a_learned_model_survives_the_folder(saved: Path) -> None:
    loaded = load_model(saved, "7")
    assert loaded.version == "7"
    assert loaded.policy == small_model().policy
    assert loaded.training == small_model().training
    np.testing.assert_allclose(forecasts(loaded), forecasts(small_model()), rtol=1e-9)


@pytest.mark.parametrize("name", CLASSICAL)
def test_every_classical_predictor_survives_the_folder(name: str, tmp_path: Path) -> None:
    model = shipped(CLASSICAL[name])
    save_model(model, tmp_path / "m")
    np.testing.assert_array_equal(forecasts(load_model(tmp_path / "m")), forecasts(model))


def test_nothing_in_the_folder_is_a_pickle(saved: Path) -> None:
    assert {path.suffix for path in saved.iterdir()} <= {".json", ".txt"}
    for path in saved.iterdir():
        path.read_text(encoding="ascii")


def test_a_changed_file_is_refused(copy: Path) -> None:
    file = next(copy.glob("*.txt"))
    file.write_text(file.read_text().replace("leaf_value=", "leaf_value=9", 1))
    with pytest.raises(ArtifactError, match="SHA-256"):
        load_model(copy)


def test_swapped_files_are_refused(copy: Path) -> None:
    one, other = sorted(copy.glob("*.txt"))[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256"):
        load_model(copy)


def test_missing_extra_and_linked_files_are_refused(copy: Path) -> None:
    (copy / "more.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"more\.txt"):
        load_model(copy)
    (copy / "more.txt").unlink()
    (copy / "link.txt").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match=r"link\.txt"):
        load_model(copy)
    (copy / "link.txt").unlink()
    next(copy.glob("*.txt")).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        load_model(copy)


def change(copy: Path, **fields: object) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest.update(fields)
    (copy / "manifest.json").write_text(json.dumps(manifest))


def test_other_horizons_formats_and_policies_are_refused(copy: Path) -> None:
    original = (copy / "manifest.json").read_text()
    change(copy, format=99)
    with pytest.raises(ArtifactError, match="format is 99"):
        load_model(copy)
    (copy / "manifest.json").write_text(original)
    change(copy, horizons=[1, 2, 3])
    with pytest.raises(ArtifactError, match="h"):
        load_model(copy)
    (copy / "manifest.json").write_text(original)
    manifest = json.loads(original)
    change(copy, policy={**manifest["policy"], "target": 0.9})
    with pytest.raises(ArtifactError):
        load_model(copy)


def test_golden_rows_catch_another_calibration(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["calibration"]["sketches"] = [
        [value / 2 for value in row] for row in manifest["calibration"]["sketches"]
    ]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="golden"):
        load_model(copy)


def test_a_truncated_manifest_and_no_manifest_are_refused(copy: Path) -> None:
    manifest = copy / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match="damaged"):
        load_model(copy)
    manifest.unlink()
    with pytest.raises(ArtifactError, match="not a model"):
        load_model(copy)


def test_a_folder_that_holds_something_is_not_overwritten(saved: Path) -> None:
    with pytest.raises(ArtifactError):
        save_model(small_model(), saved)
    load_model(saved)


def test_the_check_passes_a_good_model(saved: Path) -> None:
    check.check_model(saved)


def test_the_check_tells_why_a_model_must_not_serve(copy: Path) -> None:
    file = next(copy.glob("*.txt"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"must not serve.*SHA-256"):
        check.check_model(copy)


def test_a_check_that_takes_too_long_ends(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="longer than"):
        check.check_model(saved, timeout=0.05)


def test_a_check_that_dies_is_a_refusal(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.check.sys.executable", "/bin/false")
    with pytest.raises(ArtifactError, match="without a verdict"):
        check.check_model(saved)


class Absurd:
    """A forecaster whose every peak is so many cores."""

    name, default_knob = "absurd", 0.0

    def __init__(self, cores: float) -> None:
        self._cores = cores

    def predict(self, history: History, horizons: Sequence[int]) -> Prediction:
        shape = (history.nodes, len(horizons))
        cap = np.full(history.nodes, np.inf)
        return Prediction(np.full(shape, self._cores), np.full(shape, 1e-9), cap)


@pytest.mark.parametrize(("cores", "why"), [(0.01, "below"), (1e6, "above"), (np.nan, "no number")])
def test_absurd_forecasts_do_not_serve(cores: float, why: str) -> None:
    with pytest.raises(ArtifactError, match=why):
        check.sensible(replace(small_model(), forecaster=Absurd(cores)))


def test_a_manifest_from_before_the_ranking_weights_loads_with_their_defaults(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    for field in ("peak_hour_weight", "spread_weight", "rebuild_weight", "hot_share", "hot_weight"):
        del manifest["policy"][field]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert load_model(copy).policy == small_model().policy


def tree_text() -> str:
    """The text of a learned model's first tree model."""
    forecaster = small_model().forecaster
    assert isinstance(forecaster, QuantileForecaster)
    return trees_only(forecaster.models[0].low.model_to_string())


def with_sizes(text: str) -> str:
    """A text whose header tells the sizes that its trees have now."""
    start, end = text.index("Tree=0\n"), text.index("end of trees\n")
    sizes = [len(f"Tree={tree}") for tree in text[start:end].split("Tree=")[1:]]
    return re.sub("tree_sizes=.*", f"tree_sizes={' '.join(map(str, sizes))}", text)


@pytest.mark.parametrize(
    ("found", "written", "why"),
    [
        # LightGBM reads 0 for what Python reads as the number that follows, and for all after it.
        (r"(left_child=(?:-\d+ )*)(?=\d)", r"\g<1>0_", "no proper left_child"),
        (r"(split_feature=)", r"\g<1>0_", "no proper split_feature"),
        (r"(threshold=(?:-\S+ )*)(?=\d)", r"\g<1>0_", "no proper threshold"),
        (r"(leaf_value=(?:-\S+ )*)(?=\d)", r"\g<1>0_", "no proper leaf_value"),
        # For LightGBM, a line ends at a carriage return too, and a later entry replaces the first.
        (r"(shrinkage=\S+)", "\\g<1>\rleft_child=0 0", "other than plain text"),
        (r"(shrinkage=\S+)", "\\g<1>\0", "other than plain text"),
        # It would take this line and the next for one, and so read on in the next tree.
        (r"(shrinkage)=\S+", r"\g<1>", "entry 'shrinkage' has no value"),
    ],
)
def test_trees_that_lightgbm_would_read_otherwise_are_refused(
    found: str, written: str, why: str
) -> None:
    check_tree_text(tree_text(), input_names(1))
    text = with_sizes(re.sub(found, written, tree_text(), count=1))
    assert text != tree_text()
    with pytest.raises(ArtifactError, match=why):
        check_tree_text(text, input_names(1))


@pytest.mark.parametrize("scale", [1e-30, 1e6, 1e30])
def test_trees_of_any_scale_pass(scale: float) -> None:
    x = np.random.default_rng(0).normal(size=(500, 1)) * scale
    options = {"objective": "quantile", "num_leaves": 8, "num_threads": 1, "verbose": -1}
    booster = lgb.train(options, lgb.Dataset(x, x[:, 0], feature_name=["x"]), 2)
    text = trees_only(booster.model_to_string())
    assert re.search(r"threshold=.*\de[+-]\d+", text) or scale == 1e6
    check_tree_text(text, ("x",))
