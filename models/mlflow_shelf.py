"""Where promotions are kept in MLflow: aliases, tags and audit files of the registered model.

Aliases keep no history, so each promotion is also a tag of the version that was promoted
(``archimedes.history.NNNN``) and a file ``audit/NNNN-ACTION.json`` of its run. One file for each
event, because artifact stores cannot append.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from models.mlflow_client import aliases_of, all_versions, as_json, translated
from models.promotion import Event
from models.store import MODEL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HISTORY = "archimedes.history."
_INTENT = "archimedes.intent"


class MlflowShelf:
    """Aliases, tags and audit files of the registered model, for `models.promotion`."""

    def __init__(self, client: MlflowClient, shown: str) -> None:
        self._client = client
        self._shown = shown

    def aliases(self) -> Mapping[str, str]:
        """Alias -> version."""
        return aliases_of(self._client.get_registered_model(MODEL_NAME))

    def set_alias(self, alias: str, version: str) -> None:
        """Let an alias name a version."""
        self._client.set_registered_model_alias(MODEL_NAME, alias, version)

    def delete_alias(self, alias: str) -> None:
        """Let an alias name none."""
        self._client.delete_registered_model_alias(MODEL_NAME, alias)

    def has(self, version: str) -> bool:
        """Whether the version exists."""
        return any(str(found.version) == version for found in all_versions(self._client))

    def history(self) -> list[Event]:
        """Every change of the champion, the oldest first."""
        events = [
            msgspec.json.decode(value, type=Event)
            for version in all_versions(self._client)
            for key, value in version.tags.items()
            if key.startswith(_HISTORY)
        ]
        return sorted(events, key=lambda event: event.number)

    def record(self, event: Event) -> None:
        """Tag the promoted version with the change."""
        key = f"{_HISTORY}{event.number:04d}"
        self._client.set_model_version_tag(MODEL_NAME, event.champion, key, as_json(event))

    def intent(self) -> Event | None:
        """The change that was begun and not finished, or None."""
        text = self._client.get_registered_model(MODEL_NAME).tags.get(_INTENT)
        return None if text is None else msgspec.json.decode(text, type=Event)

    def begin(self, event: Event) -> None:
        """Note a change before it is made."""
        self._client.set_registered_model_tag(MODEL_NAME, _INTENT, as_json(event))

    def finish(self) -> None:
        """The change that was begun is whole."""
        self._client.delete_registered_model_tag(MODEL_NAME, _INTENT)

    def audit(self, event: Event) -> None:
        """Write the change into the run of the promoted version. Raises RegistryError."""
        path = f"audit/{event.number:04d}-{event.action}.json"
        with translated(self._shown):
            run_id = self._client.get_model_version(MODEL_NAME, event.champion).run_id or ""
            self._client.log_text(run_id, as_json(event), path)
