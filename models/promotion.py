"""Which version serves: promotion and rollback, safe to kill at any moment and to repeat.

Aliases can only be moved one at a time and keep no history. So the intent is written down first,
the champion is moved and never removed, and whoever changes something next completes what was
left half done. One promoter at a time: the registry has no lock that two could share. Who moves
the alias in MLflow's pages writes nothing down: the next change makes that good.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from models.errors import RegistryError

log = logging.getLogger(__name__)

BY_HAND = "the alias was moved by hand"
"""Why a version is the champion that nobody promoted with a reason."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One change of the champion.

    Fields:
        number: events count up from 1.
        champion: the version that serves from now on.
        previous: the version that served before, None for the first.
        by: who, a user name.
        time: seconds since the epoch.
    """

    number: int
    action: Literal["promote", "rollback"]
    champion: str
    previous: str | None
    reason: str
    by: str
    time: float


class Shelf(Protocol):
    """What a promotion needs of a registry. Each method is one read or one write."""

    def aliases(self) -> Mapping[str, str]:
        """Alias -> version."""

    def set_alias(self, alias: str, version: str) -> None:
        """Move an alias."""

    def delete_alias(self, alias: str) -> None:
        """Remove an alias that exists."""

    def has(self, version: str) -> bool:
        """Whether the version exists: it may have been deleted."""

    def history(self) -> list[Event]:
        """What was recorded, the oldest first."""

    def record(self, event: Event) -> None:
        """Record an event with its champion; recording it again changes nothing."""

    def intent(self) -> Event | None:
        """The change that was begun and not finished, if any."""

    def begin(self, event: Event) -> None:
        """Write the intent down."""

    def finish(self) -> None:
        """Remove the intent."""

    def audit(self, event: Event) -> None:
        """Write the event's file; writing it again changes nothing.

        Raises:
            RegistryError: it cannot be written.
        """


def promote(shelf: Shelf, version: str, reason: str, by: str, now: float) -> Event | None:
    """Make a version the champion and the old champion the previous one.

    A champion that was made by hand, in MLflow's pages, is recorded on the way: with this reason
    where it is the version asked for.

    Returns:
        What was changed, or None where the version was recorded as the champion already.
    """
    _complete(shelf)
    champion, recorded = shelf.aliases().get("champion"), recorded_champion(shelf.history())
    if champion == version:
        if recorded == version:
            return None
        return _change(shelf, "promote", version, recorded, reason, by, now)
    _record_by_hand(shelf, now)
    return _change(shelf, "promote", version, champion, reason, by, now)


def rollback(shelf: Shelf, reason: str, by: str, now: float) -> Event:
    """Swap champion and previous; a rollback that was killed half-way is completed instead.

    After a champion was made by hand, previous is what was recorded as the champion before.

    Raises:
        RegistryError: no version was replaced yet, or there is no champion.
    """
    completed = _complete(shelf)
    if completed is not None and completed.action == "rollback":
        return completed
    _record_by_hand(shelf, now)
    aliases = shelf.aliases()
    champion, previous = aliases.get("champion"), aliases.get("previous")
    if champion is None:
        wrong = "no version is the champion"
    elif previous is None:
        wrong = "there is no previous version to roll back to"
    elif champion == previous:
        wrong = f"champion and previous are both version {champion}: an alias was moved by hand"
    else:
        return _change(shelf, "rollback", previous, champion, reason, by, now)
    raise RegistryError(
        f"{wrong}; promote one with `archimedes models promote VERSION --reason WHY`"
    )


def recorded_champion(events: Sequence[Event]) -> str | None:
    """The version that the newest event made the champion."""
    return events[-1].champion if events else None


def _record_by_hand(shelf: Shelf, now: float) -> None:
    """Record a champion that somebody made by moving the alias."""
    champion, recorded = shelf.aliases().get("champion"), recorded_champion(shelf.history())
    if champion is not None and recorded is not None and champion != recorded:
        _change(shelf, "promote", champion, recorded, BY_HAND, "unknown", now)


def _change(
    shelf: Shelf,
    action: Literal["promote", "rollback"],
    champion: str,
    previous: str | None,
    reason: str,
    by: str,
    now: float,
) -> Event:
    event = Event(
        number=max((event.number for event in shelf.history()), default=0) + 1,
        action=action,
        champion=champion,
        previous=previous,
        reason=reason,
        by=by,
        time=now,
    )
    shelf.begin(event)
    _apply(shelf, event)
    return event


def _complete(shelf: Shelf) -> Event | None:
    """Finish what was begun, if anything; None too where its version was deleted meanwhile."""
    event = shelf.intent()
    if event is None:
        return None
    if not shelf.has(event.champion):
        log.warning(
            "the interrupted %s of version %s is dropped: the version was deleted",
            event.action,
            event.champion,
        )
        shelf.finish()
        return None
    _apply(shelf, event)
    return event


def _apply(shelf: Shelf, event: Event) -> None:
    """Make an event true, whatever part of it was done before."""
    if event.previous is not None and shelf.has(event.previous):
        shelf.set_alias("previous", event.previous)
    shelf.set_alias("champion", event.champion)
    if shelf.aliases().get("challenger") == event.champion:
        shelf.delete_alias("challenger")
    shelf.record(event)
    unaudited: RegistryError | None = None
    try:
        shelf.audit(event)
    except RegistryError as e:  # a broken artifact store must not stand in a rollback's way
        unaudited = e
    shelf.finish()
    if unaudited is not None:
        raise RegistryError(
            f"version {event.champion} is the champion now, but its audit file could not be "
            f"written: {unaudited}"
        ) from unaudited
