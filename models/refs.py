"""What people write where a model is wanted: a folder, a registered version, or a predictor."""

from __future__ import annotations

import tempfile
from difflib import get_close_matches
from pathlib import Path

from models.artifact import load_model
from models.classical import CLASSICAL
from models.errors import RegistryError
from models.model import Model
from models.shipped import shipped
from models.store import ALIASES, MANIFEST


def resolve_model(ref: str, tracking_uri: str) -> Model:
    """The model that a reference names.

    Looked for in this order: a folder with a manifest, a classical predictor's name
    (`models.classical.CLASSICAL`), a version number or an alias of the registry. Only the last one
    talks to MLflow.

    Raises:
        ArtifactError: the folder, or the registered version, is no sound model.
        RegistryError: the registry cannot be reached, or knows no such version or alias.
    """
    folder = Path(ref)
    if (folder / MANIFEST).is_file():
        return load_model(folder)
    if ref in CLASSICAL:
        return shipped(CLASSICAL[ref])
    if folder.is_dir():
        raise RegistryError(f"{ref} is a folder without {MANIFEST}, so it is no model.")
    return _pull(ref, tracking_uri)


def _pull(ref: str, tracking_uri: str) -> Model:
    from models.registry import Registry

    with tempfile.TemporaryDirectory(prefix="archimedes-") as scratch:
        try:
            version = Registry(tracking_uri).pull(ref, Path(scratch))
        except RegistryError as e:
            if ref.isdecimal() or ref in ALIASES:
                raise
            like = [f" (did you mean {each}?)" for each in get_close_matches(ref, CLASSICAL, 1)]
            raise RegistryError(
                f"{ref!r} is neither a model's folder nor a classical predictor{''.join(like)}, "
                f"and it cannot be had from the registry: {e}"
            ) from e
        return load_model(Path(scratch) / version, version)
