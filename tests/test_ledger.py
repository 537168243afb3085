"""The ledger: every charge counted once, against a slow recount after each of random steps."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from extender.ledger import Ledger, Stage


def hold(
    ledger: Ledger, uid: str, millicpu: int, rows: tuple[int, ...], expires: float = 15
) -> None:
    """Hold an ask on rows at time 0."""
    ledger.hold(uid, f"default/{uid}", millicpu, 0, rows, 0.0, expires)


def reserve(ledger: Ledger, uid: str, millicpu: int, row: int, available: int) -> bool:
    """Reserve at time 1."""
    return ledger.reserve(uid, f"default/{uid}", millicpu, 0, row, available, 1.0, 20.0)


def confirm(ledger: Ledger, uid: str, millicpu: int, row: int) -> None:
    """Confirm at time 2."""
    ledger.confirm(uid, f"default/{uid}", millicpu, 0, row, 2.0)


def charged(ledger: Ledger, nodes: int, without: str = "") -> list[int]:
    """The charges as plain integers."""
    return [int(value) for value in ledger.charged(nodes, without)]


def test_a_hold_charges_every_offered_node_and_a_reservation_only_one() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (0, 2))
    assert charged(ledger, 3) == [500, 0, 500]
    assert reserve(ledger, "a", 500, 2, available=500)
    assert charged(ledger, 3) == [0, 0, 500]
    confirm(ledger, "a", 500, 2)
    assert charged(ledger, 3) == [0, 0, 500]
    ledger.release("a")
    assert charged(ledger, 3) == [0, 0, 0]


def test_a_pods_own_charge_is_not_held_against_it() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (0, 1))
    hold(ledger, "b", 300, (1,))
    assert charged(ledger, 2, without="a") == [0, 300]
    assert charged(ledger, 2, without="b") == [500, 500]
    assert charged(ledger, 2, without="stranger") == [500, 800]


def test_filtering_again_replaces_the_hold() -> None:
    ledger = Ledger()
    for _ in range(5):
        hold(ledger, "a", 500, (0, 1))
    hold(ledger, "a", 700, (1,), expires=30)
    assert charged(ledger, 2) == [0, 700]
    assert len(ledger) == 1
    assert ledger.expire(15.0) == []


def test_the_same_hold_again_lasts_longer() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (0,), expires=15)
    hold(ledger, "a", 500, (0,), expires=25)
    assert ledger.expire(20.0) == []
    assert [entry.uid for entry in ledger.expire(25.0)] == ["a"]


def test_filtering_again_without_a_fitting_node_gives_the_hold_back() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (0,))
    hold(ledger, "a", 500, ())
    assert len(ledger) == 0


def test_a_late_filter_call_leaves_a_binding_alone() -> None:
    ledger = Ledger()
    assert reserve(ledger, "a", 500, 0, available=500)
    hold(ledger, "a", 500, (1,))
    assert charged(ledger, 2) == [500, 0]


def test_a_reservation_that_does_not_fit_leaves_nothing_charged() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (0, 1))
    assert not reserve(ledger, "a", 500, 0, available=499)
    assert charged(ledger, 2) == [0, 0]


def test_a_bound_pod_is_not_moved_by_a_late_bind() -> None:
    ledger = Ledger()
    confirm(ledger, "a", 500, 0)
    assert not reserve(ledger, "a", 500, 1, available=1000)
    assert reserve(ledger, "a", 500, 0, available=0)
    ledger.release_binding("a")
    ledger.release_hold("a")
    assert charged(ledger, 2) == [500, 0]


def test_each_kind_of_release_gives_back_only_its_own_stage() -> None:
    ledger = Ledger()
    hold(ledger, "held", 1, (0,))
    reserve(ledger, "binding", 10, 0, available=10)
    ledger.release_binding("held")
    ledger.release_hold("binding")
    assert charged(ledger, 1) == [11]
    ledger.release_hold("held")
    ledger.release_binding("binding")
    assert charged(ledger, 1) == [0]


def test_what_the_api_server_shows_is_true_even_where_it_does_not_fit() -> None:
    ledger = Ledger()
    confirm(ledger, "a", 10**9, 0)
    confirm(ledger, "b", 10**9, 0)
    assert charged(ledger, 1) == [2 * 10**9]


def test_a_confirmed_promise_keeps_the_time_at_which_it_was_made() -> None:
    ledger = Ledger()
    reserve(ledger, "a", 500, 0, available=500)
    confirm(ledger, "a", 500, 0)
    entry = ledger.get("a")
    assert entry is not None
    assert (entry.made, entry.stage) == (1.0, Stage.BOUND)


def test_only_holds_and_bindings_expire() -> None:
    ledger = Ledger()
    hold(ledger, "held", 1, (0,), expires=15)
    reserve(ledger, "binding", 10, 0, available=10)  # expires at 20
    confirm(ledger, "bound", 100, 0)
    assert [entry.uid for entry in ledger.expire(14.9)] == []
    assert [entry.uid for entry in ledger.expire(15.0)] == ["held"]
    ledger.extend("binding", 100.0)
    assert ledger.expire(99.0) == []
    assert [entry.uid for entry in ledger.expire(1e9)] == ["binding"]
    assert charged(ledger, 1) == [100]


def test_a_node_that_goes_takes_its_charges_along_and_no_others() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (0, 1))
    confirm(ledger, "b", 300, 0)
    ledger.drop_row(0)
    assert charged(ledger, 2) == [0, 500]
    assert ledger.get("b") is None


def test_rows_beyond_those_seen_so_far_are_free() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (3,))
    assert charged(ledger, 6) == [0, 0, 0, 500, 0, 0]
    assert charged(ledger, 2) == [0, 0]


def test_what_is_handed_out_does_not_change_later() -> None:
    ledger = Ledger()
    before = ledger.charged(1)
    hold(ledger, "a", 500, (0,))
    assert before.tolist() == [0]


UIDS = st.sampled_from("abcdef")
ROWS = st.integers(0, 4)
ASKS = st.integers(0, 3000)


class Bookkeeping(RuleBasedStateMachine):
    """Random steps; after each, the sums equal a recount of the entries."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.now = 0.0

    @rule(uid=UIDS, ask=ASKS, rows=st.sets(ROWS))
    def hold(self, uid: str, ask: int, rows: set[int]) -> None:
        self.ledger.hold(uid, uid, ask, 0, tuple(sorted(rows)), self.now, self.now + 15)

    @rule(uid=UIDS, ask=ASKS, row=ROWS, available=ASKS)
    def reserve(self, uid: str, ask: int, row: int, available: int) -> None:
        before = self.ledger.get(uid)
        done = self.ledger.reserve(uid, uid, ask, 0, row, available, self.now, self.now + 20)
        if before is not None and before.stage is Stage.BOUND:
            assert self.ledger.get(uid) == before
        else:
            assert done == (ask <= available)

    @rule(uid=UIDS, ask=ASKS, row=ROWS)
    def confirm(self, uid: str, ask: int, row: int) -> None:
        self.ledger.confirm(uid, uid, ask, 0, row, self.now)

    @rule(uid=UIDS)
    def release(self, uid: str) -> None:
        self.ledger.release(uid)

    @rule(row=ROWS)
    def drop_row(self, row: int) -> None:
        self.ledger.drop_row(row)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for entry in self.ledger.expire(self.now):
            assert entry.stage is not Stage.BOUND

    @invariant()
    def sums_are_exact(self) -> None:
        for without in ("", "a"):
            recount = np.zeros(5, np.int64)
            for entry in self.ledger.entries():
                if entry.uid != without:
                    for row in entry.rows:
                        recount[row] += entry.millicpu
            assert self.ledger.charged(5, without).tolist() == recount.tolist()


Bookkeeping.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBookkeeping = Bookkeeping.TestCase


def test_an_entry_cannot_be_changed() -> None:
    ledger = Ledger()
    hold(ledger, "a", 1, (0,))
    with pytest.raises(AttributeError):
        ledger.entries()[0].millicpu = 2  # type: ignore[misc]
