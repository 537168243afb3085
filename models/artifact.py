"""A model version as a folder of text files, safe to load from a registry that nobody trusts.

The folder holds ``manifest.json`` and, for a learned model, LightGBM text files. Nothing is ever
pickled, so loading runs no code from the folder; everything that is read is checked before use.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import lightgbm as lgb
import msgspec
import numpy as np

from models.calibration import SHARES, Calibration
from models.classical import CLASSICAL, classical
from models.errors import ArtifactError
from models.features import FEATURE_NAMES, expert_names, input_names
from models.forecaster import Forecaster
from models.golden import Golden, check_golden, make_golden
from models.model import Model, Training
from models.policy import HORIZONS, Policy
from models.quantile import HorizonModel, QuantileForecaster
from models.store import MANIFEST
from models.tree_text import check_tree_text, trees_only

FORMAT = 1
"""Raised whenever an older program could not read what a newer one writes."""

MAX_FILE = 16 * 1024 * 1024
"""Bytes of one file; a trained model's largest, the manifest, has a tenth of a megabyte."""

MAX_FILES = 64
"""Files in a folder; a learned model has two for each horizon, and the manifest."""

_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


class LearnedHorizon(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`models.quantile.HorizonModel` with its tree models as names of files in the folder."""

    hours: int
    location: tuple[float, ...]
    spread: tuple[float, ...]
    low: str
    high: str


class Learned(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """`models.quantile.QuantileForecaster`; ``features`` are those it was trained on, in order."""

    features: tuple[str, ...]
    tree_weight: float
    models: tuple[LearnedHorizon, ...]


class Classical(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """A predictor of `models.classical`, whose parameters are fixed by its name."""

    name: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything of a model but the tree models; ``files`` maps each of those to its SHA-256."""

    format: int
    forecaster: Learned | Classical
    horizons: tuple[int, ...]
    calibration: Calibration
    policy: Policy
    training: Training
    golden: Golden
    files: dict[str, str]


def save_model(model: Model, folder: Path) -> None:
    """Write a model as a new folder; it appears complete or not at all.

    Raises:
        ArtifactError: the folder exists and is not empty, or cannot be written.
    """
    try:
        _write(folder, pack_model(model))
    except OSError as e:
        raise ArtifactError(f"the model cannot be written to {folder}: {e}") from e


def pack_model(model: Model) -> dict[str, bytes]:
    """What `save_model` writes: the content of each file by its name.

    Raises:
        ArtifactError: it is not a model that can be saved.
    """
    spec, texts = _described(model.forecaster)
    manifest = Manifest(
        format=FORMAT,
        forecaster=spec,
        horizons=HORIZONS,
        calibration=model.calibration,
        policy=model.policy,
        training=model.training,
        golden=make_golden(model.forecaster, model.calibration, model.policy),
        files={name: _sha256(text) for name, text in texts.items()},
    )
    return {**texts, MANIFEST: msgspec.json.format(msgspec.json.encode(manifest), indent=0)}


def load_model(folder: Path, version: str = "") -> Model:
    """Read a model; ``version`` names it, by default the first 12 digits of the manifest's hash.

    Raises:
        ArtifactError: a part is missing, superfluous, too large, was changed, or would serve
            nonsense.
    """
    files = _read(folder)
    try:
        return unpack_model(files, version)
    except ArtifactError as e:
        raise ArtifactError(f"the model in {folder} cannot be used: {e}") from e


def unpack_model(files: Mapping[str, bytes], version: str = "") -> Model:
    """The model that `pack_model` packed; see `load_model`, whose checks these are.

    Raises:
        ArtifactError: as there; the text does not say where the model came from.
    """
    texts = dict(files)
    document = texts.pop(MANIFEST, None)
    if document is None:
        raise ArtifactError(f"it is not a model: it has no {MANIFEST}")
    manifest = _manifest(document)
    _check_files(manifest, texts)
    forecaster = _forecaster(manifest.forecaster, texts)
    check_golden(manifest.golden, forecaster, manifest.calibration, manifest.policy)
    return Model(
        version or _sha256(document)[:12],
        forecaster,
        manifest.calibration,
        manifest.policy,
        manifest.training,
    )


def _described(forecaster: Forecaster) -> tuple[Learned | Classical, dict[str, bytes]]:
    """A forecaster as data, and the files that it needs."""
    if not isinstance(forecaster, QuantileForecaster):
        if CLASSICAL.get(forecaster.name) != forecaster:
            raise ArtifactError(f"'{forecaster.name}' is not a forecaster that can be saved")
        return Classical(name=forecaster.name), {}
    texts: dict[str, bytes] = {}
    models = []
    for model in forecaster.models:
        low, high = f"{model.hours}h-low.model.txt", f"{model.hours}h-high.model.txt"
        texts[low], texts[high] = _text(model.low), _text(model.high)
        models.append(
            LearnedHorizon(
                hours=model.hours,
                location=tuple(model.location.tolist()),
                spread=tuple(model.spread.tolist()),
                low=low,
                high=high,
            )
        )
    learned = Learned(
        features=FEATURE_NAMES, tree_weight=forecaster.tree_weight, models=tuple(models)
    )
    return learned, texts


def _text(booster: lgb.Booster) -> bytes:
    return trees_only(booster.model_to_string()).encode("ascii")


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, content in files.items():
            (staging / name).write_bytes(content)
        staging.chmod(0o755)  # mkdtemp's 0700 would hide the model from whoever serves it
        staging.rename(folder)  # refused where the folder holds anything
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _read(folder: Path) -> dict[str, bytes]:
    """The content of each file in a folder that holds nothing else."""
    try:
        entries = sorted(folder.iterdir())
        if len(entries) > MAX_FILES:
            raise ArtifactError(f"{folder} is not a model: it holds more than {MAX_FILES} files")
        return {entry.name: _content(entry) for entry in entries}
    except OSError as e:
        raise ArtifactError(f"the model in {folder} cannot be read: {e}") from e


def _content(file: Path) -> bytes:
    if file.is_symlink() or not file.is_file() or not _FILE_NAME.fullmatch(file.name):
        raise ArtifactError(f"{file} is not a file that belongs to a model; remove it")
    with file.open("rb") as opened:
        content = opened.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ArtifactError(f"{file} is larger than a model's files can be ({MAX_FILE} bytes)")
    return content


def _manifest(document: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(document, type=_Format).format
        if version != FORMAT:
            raise ArtifactError(
                f"its format is {version}, this release reads {FORMAT}; train it again, or use the "
                "release that wrote it"
            )
        manifest = msgspec.json.decode(document, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ArtifactError(f"its {MANIFEST} is damaged ({e})") from e
    if not all(np.isfinite(number) for number in _numbers(msgspec.to_builtins(manifest))):
        raise ArtifactError(f"its {MANIFEST} holds a number that is not finite")
    _check_calibration(manifest.calibration)
    if manifest.horizons != HORIZONS:
        raise ArtifactError(f"it forecasts {manifest.horizons} h, this release needs {HORIZONS} h")
    return manifest


class _Format(msgspec.Struct):
    format: int


def _check_files(manifest: Manifest, files: dict[str, bytes]) -> None:
    missing, superfluous = (
        manifest.files.keys() - files.keys(),
        files.keys() - manifest.files.keys(),
    )
    if missing:
        raise ArtifactError(f"its file {min(missing)[:80]!r} is missing")
    if superfluous:
        raise ArtifactError(f"the file {min(superfluous)!r} does not belong to it")
    for name, digest in manifest.files.items():
        if _sha256(files[name]) != digest:
            raise ArtifactError(f"its file '{name}' was changed: the SHA-256 differs")


def _check_calibration(calibration: Calibration) -> None:
    shaped = (
        calibration.horizons == HORIZONS
        and len(calibration.windows) == len(HORIZONS)
        and [len(row) for row in calibration.sketches] == [len(SHARES)] * len(HORIZONS)
    )
    if not shaped or min(calibration.windows) <= 0:
        raise ArtifactError("its calibration does not have the shape that this release needs")


def _forecaster(spec: Learned | Classical, files: dict[str, bytes]) -> Forecaster:
    if isinstance(spec, Classical):
        return classical(spec.name)
    if spec.features != FEATURE_NAMES:
        raise ArtifactError("its features are not those of this release, in order; train it again")
    if tuple(model.hours for model in spec.models) != HORIZONS:
        raise ArtifactError("it does not hold one model for each horizon")
    if not 0 <= spec.tree_weight <= 1:
        raise ArtifactError("its tree weight is not a share")
    return QuantileForecaster(tuple(_horizon(m, files) for m in spec.models), spec.tree_weight)


def _horizon(spec: LearnedHorizon, files: dict[str, bytes]) -> HorizonModel:
    location, spread = np.array(spec.location), np.array(spec.spread)
    for weights in (location, spread):
        if weights.shape != (len(expert_names(spec.hours)),) or (weights < 0).any():
            raise ArtifactError(
                f"its {spec.hours} h model needs one weight per expert, none negative"
            )
    low, high = (_booster(name, spec.hours, files) for name in (spec.low, spec.high))
    return HorizonModel(spec.hours, location, spread, low, high)


def _booster(name: str, hours: int, files: dict[str, bytes]) -> lgb.Booster:
    if name not in files:
        raise ArtifactError(f"its file {name[:80]!r} is missing")
    try:
        text = files[name].decode("ascii")
        check_tree_text(text, input_names(hours))
        return lgb.Booster(model_str=text)
    except (UnicodeDecodeError, ArtifactError, lgb.basic.LightGBMError) as e:
        raise ArtifactError(f"its file '{name}' is no model that can serve: {e}") from e


def _numbers(value: object) -> Iterator[float]:
    """All floats in nested dicts and sequences."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
