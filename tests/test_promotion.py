"""Promotion and rollback, killed at every possible moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import RegistryError
from models.promotion import BY_HAND, Event, promote, rollback


class KilledError(Exception):
    """The process died."""


class FakeShelf:
    """A registry in memory that dies before its n-th write."""

    def __init__(self, aliases: Mapping[str, str], dies_before: int = 10_000) -> None:
        self._aliases = dict(aliases)
        self._deleted: set[str] = set()
        self._recorded: dict[int, Event] = {}
        self._intent: Event | None = None
        self.audited: dict[int, Event] = {}
        self.dies_before = dies_before
        self.champions: list[str | None] = [aliases.get("champion")]

    def _write(self) -> None:
        self.dies_before -= 1
        if self.dies_before < 0:
            raise KilledError

    def aliases(self) -> Mapping[str, str]:
        return dict(self._aliases)

    def set_alias(self, alias: str, version: str) -> None:
        self._write()
        if version in self._deleted:
            raise RegistryError(f"version {version} not found")
        self._aliases[alias] = version
        self.champions.append(self._aliases.get("champion"))

    def delete_alias(self, alias: str) -> None:
        self._write()
        del self._aliases[alias]
        self.champions.append(self._aliases.get("champion"))

    def has(self, version: str) -> bool:
        return version not in self._deleted

    def delete_version(self, version: str) -> None:
        """As MLflow does: the version's aliases and its events go with it."""
        self._deleted.add(version)
        self._aliases = {a: v for a, v in self._aliases.items() if v != version}
        self._recorded = {n: e for n, e in self._recorded.items() if e.champion != version}

    def history(self) -> list[Event]:
        return [self._recorded[number] for number in sorted(self._recorded)]

    def record(self, event: Event) -> None:
        self._write()
        self._recorded[event.number] = event

    def intent(self) -> Event | None:
        return self._intent

    def begin(self, event: Event) -> None:
        self._write()
        self._intent = event

    def finish(self) -> None:
        self._write()
        self._intent = None

    def audit(self, event: Event) -> None:
        self._write()
        self.audited[event.number] = event


STATE = {"champion": "1", "challenger": "2", "previous": "0"}

Change: TypeAlias = Callable[[FakeShelf], object]


def promote_2(shelf: FakeShelf) -> object:
    return promote(shelf, "2", "better", "me", 10.0)


def roll_back(shelf: FakeShelf) -> object:
    return rollback(shelf, "worse", "me", 10.0)


AFTER: dict[Change, dict[str, str]] = {
    promote_2: {"champion": "2", "previous": "1"},
    roll_back: {"champion": "0", "previous": "1", "challenger": "2"},
}


@pytest.mark.parametrize("change", AFTER)
def test_a_change_moves_the_aliases_and_is_recorded_once(change: Change) -> None:
    shelf = FakeShelf(STATE)
    event = change(shelf)
    assert shelf.aliases() == AFTER[change]
    assert shelf.history() == [event] == list(shelf.audited.values())
    assert shelf.intent() is None


# A promotion writes: intent, previous, champion, no challenger, record, audit, no intent = 7.
# A rollback has no challenger to clear: 6.
@pytest.mark.parametrize(("change", "writes"), [(promote_2, 7), (roll_back, 6)])
def test_repeating_a_killed_change_completes_it(change: Change, writes: int) -> None:
    for survived in range(writes):
        shelf = FakeShelf(STATE, dies_before=survived)
        with pytest.raises(KilledError):
            change(shelf)
        assert None not in shelf.champions, "no champion for a moment"
        shelf.dies_before = 10_000
        change(shelf)
        assert shelf.aliases() == AFTER[change]
        assert len(shelf.history()) == len(shelf.audited) == 1
        assert shelf.intent() is None
    untouched = FakeShelf(STATE, dies_before=writes)
    change(untouched)
    assert untouched.dies_before == 0


def test_promoting_the_champion_again_changes_nothing() -> None:
    shelf = FakeShelf(STATE)
    promote_2(shelf)
    before = dict(shelf.aliases())
    assert promote_2(shelf) is None
    assert shelf.aliases() == before
    assert len(shelf.history()) == 1


def test_the_first_champion_replaces_nobody() -> None:
    shelf = FakeShelf({"challenger": "2"})
    event = promote_2(shelf)
    assert isinstance(event, Event)
    assert event.previous is None
    assert shelf.aliases() == {"champion": "2"}


def test_promotion_keeps_another_challenger() -> None:
    shelf = FakeShelf({"champion": "1", "challenger": "3"})
    promote_2(shelf)
    assert shelf.aliases() == {"champion": "2", "previous": "1", "challenger": "3"}


@pytest.mark.parametrize(
    ("aliases", "says"),
    [
        ({}, "no version is the champion"),
        ({"previous": "1"}, "no version is the champion"),
        ({"champion": "1"}, "no previous version"),
        ({"champion": "1", "previous": "1"}, "champion and previous are both version 1"),
    ],
)
def test_rollback_without_a_previous_version_is_refused(aliases: dict[str, str], says: str) -> None:
    shelf = FakeShelf(aliases)
    with pytest.raises(RegistryError, match=f"{says}.*models promote"):
        roll_back(shelf)
    assert shelf.aliases() == aliases


def moved_by_hand() -> FakeShelf:
    """Version 1 was promoted, and 2 made the champion in MLflow's pages."""
    shelf = FakeShelf({"challenger": "2"})
    promote(shelf, "1", "first", "me", 1.0)
    shelf.set_alias("champion", "2")
    return shelf


def test_a_champion_made_by_hand_is_recorded_with_the_reason_that_is_given_later() -> None:
    shelf = moved_by_hand()
    event = promote_2(shelf)
    assert isinstance(event, Event)
    assert (event.champion, event.previous, event.reason) == ("2", "1", "better")
    assert shelf.aliases() == {"champion": "2", "previous": "1"}
    assert promote_2(shelf) is None


def test_a_champion_made_by_hand_can_be_rolled_back() -> None:
    shelf = moved_by_hand()
    roll_back(shelf)
    assert shelf.aliases() == {"champion": "1", "previous": "2"}
    assert [(e.action, e.champion, e.previous) for e in shelf.history()] == [
        ("promote", "1", None),
        ("promote", "2", "1"),
        ("rollback", "1", "2"),
    ]
    assert shelf.history()[1].reason == BY_HAND


def test_a_champion_made_by_hand_stays_in_the_history_of_the_next() -> None:
    shelf = moved_by_hand()
    promote(shelf, "3", "better still", "me", 2.0)
    assert shelf.aliases() == {"champion": "3", "previous": "2"}
    assert [(e.champion, e.previous) for e in shelf.history()] == [
        ("1", None),
        ("2", "1"),
        ("3", "2"),
    ]


def test_a_first_champion_made_by_hand_is_recorded_when_it_is_promoted() -> None:
    shelf = FakeShelf({"champion": "2"})
    event = promote_2(shelf)
    assert shelf.history() == [event]
    assert shelf.aliases() == {"champion": "2"}


def test_two_rollbacks_come_back_to_where_they_started() -> None:
    shelf = FakeShelf(STATE)
    roll_back(shelf)
    roll_back(shelf)
    assert shelf.aliases() == STATE
    assert [event.number for event in shelf.history()] == [1, 2]


def test_an_interrupted_promotion_is_completed_before_a_rollback() -> None:
    shelf = FakeShelf(STATE, dies_before=2)  # intent and previous written, champion not
    with pytest.raises(KilledError):
        promote_2(shelf)
    shelf.dies_before = 10_000
    roll_back(shelf)
    assert shelf.aliases() == {"champion": "1", "previous": "2"}
    assert [event.action for event in shelf.history()] == ["promote", "rollback"]


@pytest.mark.parametrize("change", [lambda s: promote(s, "3", "safe", "me", 20.0), roll_back])
def test_an_interrupted_promotion_of_a_deleted_version_stands_in_nobodys_way(
    change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = FakeShelf(STATE, dies_before=1)  # the intent was written, and nothing else
    with pytest.raises(KilledError):
        promote_2(shelf)
    shelf.dies_before = 10_000
    shelf.delete_version("2")
    event = change(shelf)
    assert isinstance(event, Event)
    assert shelf.aliases() == {"champion": event.champion, "previous": "1"}
    assert shelf.history() == [event]
    assert shelf.intent() is None
    assert "interrupted promote of version 2 is dropped" in caplog.text


def test_an_interrupted_promotion_whose_old_champion_was_deleted_is_completed() -> None:
    shelf = FakeShelf(STATE, dies_before=1)
    with pytest.raises(KilledError):
        promote_2(shelf)
    shelf.dies_before = 10_000
    shelf.delete_version("1")
    promote_2(shelf)
    assert shelf.aliases() == {"champion": "2", "previous": "0"}
    assert [event.champion for event in shelf.history()] == ["2"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["rollback", "by hand", "promote"]),
            st.sampled_from("123"),
            st.integers(0, 12),
        ),
        max_size=12,
    )
)
def test_any_sequence_of_killed_changes_keeps_a_champion_and_a_true_history(
    steps: list[tuple[str, str, int]],
) -> None:
    shelf = FakeShelf({"challenger": "2"})
    promote(shelf, "1", "first", "me", 0.0)
    for action, version, survives in steps:
        shelf.dies_before = survives
        try:
            if action == "rollback":
                rollback(shelf, "why", "me", 0.0)
            elif action == "by hand":
                shelf.set_alias("champion", version)
            else:
                promote(shelf, version, "why", "me", 0.0)
        except (KilledError, RegistryError):
            continue
    assert None not in shelf.champions[1:]
    shelf.dies_before = 10_000
    promote(shelf, "3", "last", "me", 0.0)
    assert shelf.aliases()["champion"] == "3"
    champions = [None, *(event.champion for event in shelf.history())]
    assert champions[-1] == "3"
    # Each event starts where the one before it ended.
    assert [event.previous for event in shelf.history()] == champions[:-1]
    assert shelf.history() == [shelf.audited[number] for number in sorted(shelf.audited)]


def test_a_rollback_takes_effect_though_its_audit_file_cannot_be_written() -> None:
    class Unaudited(FakeShelf):
        def audit(self, event: Event) -> None:
            raise RegistryError(f"no space left for {event.number}")

    shelf = Unaudited(STATE)
    with pytest.raises(RegistryError, match=r"version 0 is the champion now.*no space left for 1"):
        roll_back(shelf)
    assert shelf.aliases() == AFTER[roll_back]
    assert shelf.intent() is None
    assert len(shelf.history()) == 1
