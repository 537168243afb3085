"""The ledger: every charge counted once, against a slow recount after each of random steps."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec.structs import replace

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
    ledger.withdraw("a", None)
    ledger.release_hold("a")
    assert charged(ledger, 2) == [500, 0]


def test_each_kind_of_release_gives_back_only_its_own_stage() -> None:
    ledger = Ledger()
    hold(ledger, "held", 1, (0,))
    reserve(ledger, "binding", 10, 0, available=10)
    ledger.withdraw("held", None)
    ledger.release_hold("binding")
    assert charged(ledger, 1) == [11]
    ledger.release_hold("held")
    ledger.withdraw("binding", None)
    assert charged(ledger, 1) == [0]


def test_what_the_api_server_shows_is_true_even_where_it_does_not_fit() -> None:
    ledger = Ledger()
    confirm(ledger, "a", 10**9, 0)
    confirm(ledger, "b", 10**9, 0)
    assert charged(ledger, 1) == [2 * 10**9]


def test_a_confirmed_promise_keeps_what_was_decided() -> None:
    ledger = Ledger()
    ledger.reserve("a", "default/a", 500, 2, 0, 500, 1.0, 20.0)
    confirm(ledger, "a", 500, 0)  # at time 2, for the horizon that is now expected
    entry = ledger.get("a")
    assert entry is not None
    assert (entry.made, entry.stage, entry.horizon) == (1.0, Stage.BOUND, 2)
    assert entry.expires == 1.0 + 6 * 3600


def test_a_try_whose_fate_is_open_stays_charged_beside_the_next() -> None:
    ledger = Ledger()
    reserve(ledger, "a", 500, 0, available=500)
    open_try = ledger.get("a")
    assert reserve(ledger, "a", 500, 1, available=500)
    assert charged(ledger, 3) == [500, 500, 0]
    assert not reserve(ledger, "a", 500, 2, available=499)
    assert charged(ledger, 3) == [500, 500, 0]
    ledger.withdraw("a", open_try)  # the second was refused; of the first nothing is known
    assert charged(ledger, 3) == [500, 0, 0]
    ledger.settle("a", 1, 2.0, 600.0)  # somebody read where the pod is
    assert charged(ledger, 3) == [0, 500, 0]
    assert ledger.expire(599.0) == []


def test_only_a_binding_that_waits_for_ever_is_concluded() -> None:
    ledger = Ledger()
    ledger.reserve("a", "default/a", 500, 0, 0, 500, 1.0, np.inf)
    reserve(ledger, "b", 1, 0, available=1)  # expires at 20
    hold(ledger, "c", 2, (0,), expires=15)
    for uid in "abc":
        ledger.conclude(uid, 2.0, 50.0)
    assert [entry.uid for entry in ledger.late_bindings(20.0)] == ["b"]
    assert [entry.uid for entry in ledger.late_bindings(50.0)] == ["a", "b"]
    ledger.extend("a", 3.0, 60.0)
    assert [entry.uid for entry in ledger.late_bindings(59.0)] == ["b"]


def test_a_promise_past_its_horizon_stays_charged_and_can_be_renewed() -> None:
    ledger = Ledger()
    confirm(ledger, "a", 500, 0)  # at time 2, for an hour
    assert ledger.overdue(ledger.bound(), 3601.9) == []
    assert [entry.uid for entry in ledger.overdue(ledger.bound(), 3602.0)] == ["a"]
    assert ledger.expire(3602.0) == []
    ledger.renew("a", 4000.0)
    assert ledger.overdue(ledger.bound(), 7599.0) == []
    assert [entry.uid for entry in ledger.overdue(ledger.bound(), 7600.0)] == ["a"]
    assert charged(ledger, 1) == [500]


def test_what_is_promised_is_charged_but_not_held() -> None:
    ledger = Ledger()
    hold(ledger, "held", 1, (0, 1))
    reserve(ledger, "binding", 10, 0, available=10)
    confirm(ledger, "bound", 100, 1)
    assert ledger.promised(3).tolist() == [10, 100, 0]


def test_a_shift_moves_the_end_of_what_waits() -> None:
    ledger = Ledger()
    hold(ledger, "held", 1, (0,), expires=15)
    confirm(ledger, "bound", 100, 0)  # until 3602
    ledger.shift(100.0, (Stage.HELD, Stage.BINDING), is_new=lambda time: time > 100)
    assert ledger.expire(114.0) == []
    assert [entry.uid for entry in ledger.expire(115.0)] == ["held"]
    assert [entry.uid for entry in ledger.overdue(ledger.bound(), 3602.0)] == ["bound"]


def test_what_was_dated_after_the_clock_was_set_is_not_shifted() -> None:
    """Each was made at time 0 or 1; the clock was set to 1000 then, and all is dated once more."""
    ledger = Ledger()
    for uid in ("repeated", "settled", "extended", "concluded", "withdrawn"):
        hold(ledger, uid, 1, (0,), expires=15)
    ledger.hold("repeated", "default/repeated", 1, 0, (0,), 1000.0, 1015.0)
    for uid in ("settled", "extended", "concluded", "withdrawn"):
        ledger.reserve(uid, f"default/{uid}", 1, 0, 0, 1, 1.0, np.inf)
    ledger.settle("settled", 0, 1000.0, 1060.0)
    ledger.extend("extended", 1000.0, 1015.0)
    ledger.conclude("concluded", 1000.0, 1015.0)
    ledger.conclude("withdrawn", 2.0, 17.0)
    ledger.withdraw("withdrawn", ledger.get("withdrawn"))
    ledger.conclude("withdrawn", 1000.0, 1015.0)
    confirm(ledger, "renewed", 1, 0)
    ledger.renew("renewed", 1000.0)
    confirm(ledger, "bound", 1, 0)  # at time 2, for an hour
    before = ledger.entries()
    ledger.shift(998.0, tuple(Stage), is_new=lambda time: time >= 1000)
    pairs = [(was, entry) for was, entry in zip(before, ledger.entries(), strict=True)]
    assert [was.uid for was, entry in pairs if entry.expires != was.expires] == ["bound"]
    assert {entry.made - was.made for was, entry in pairs} == {998.0}
    bound = ledger.get("bound")
    assert bound is not None
    assert (bound.made, bound.expires) == (998 + 2, 998 + 3602)
    ledger.shift(-998.0, tuple(Stage), is_new=lambda time: time < 900)  # its date has moved along
    assert ledger.entries()[-1].expires == 3602


def test_only_holds_expire() -> None:
    ledger = Ledger()
    hold(ledger, "held", 1, (0,), expires=15)
    reserve(ledger, "binding", 10, 0, available=10)  # expires at 20
    confirm(ledger, "bound", 100, 0)
    assert [entry.uid for entry in ledger.expire(14.9)] == []
    assert [entry.uid for entry in ledger.expire(15.0)] == ["held"]
    assert ledger.expire(1e9) == []
    assert charged(ledger, 1) == [110]


def test_a_node_that_goes_takes_its_charges_along_and_no_others() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (0, 1))
    confirm(ledger, "b", 300, 0)
    assert not ledger.drop_row(0, ["b", "unknown"])
    assert charged(ledger, 2) == [0, 500]
    assert ledger.get("b") is None
    assert not ledger.has_open(0)


def test_a_binding_under_way_outlasts_its_node() -> None:
    ledger = Ledger()
    reserve(ledger, "a", 500, 0, available=500)
    assert ledger.drop_row(0, [])
    assert ledger.has_open(0)
    assert charged(ledger, 1) == [500]


def test_rows_beyond_those_seen_so_far_are_free() -> None:
    ledger = Ledger()
    hold(ledger, "a", 500, (3,))
    assert charged(ledger, 6) == [0, 0, 0, 500, 0, 0]
    assert charged(ledger, 2) == [0, 0]


def test_what_is_kept_does_not_change_later() -> None:
    ledger = Ledger()
    before = ledger.charged(1, keep=True)
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
        if before is not None and before.stage is Stage.BINDING:
            after = self.ledger.get(uid)
            assert after is not None
            assert set(before.rows) <= set(after.rows)

    @rule(uid=UIDS, row=ROWS)
    def settle(self, uid: str, row: int) -> None:
        self.ledger.settle(uid, row, self.now, self.now + 600)

    @rule(uid=UIDS, back=st.booleans())
    def withdraw(self, uid: str, back: bool) -> None:
        before = self.ledger.get(uid)
        self.ledger.withdraw(uid, before if back else None)
        if back and before is not None and before.stage is Stage.BINDING:
            assert self.ledger.get(uid) == replace(before, expires=np.inf)
        elif back:
            assert self.ledger.get(uid) == before

    @rule(uid=UIDS, ask=ASKS, row=ROWS)
    def confirm(self, uid: str, ask: int, row: int) -> None:
        self.ledger.confirm(uid, uid, ask, 0, row, self.now)

    @rule(uid=UIDS)
    def release(self, uid: str) -> None:
        self.ledger.release(uid)

    @rule(row=ROWS)
    def drop_row(self, row: int) -> None:
        here = [entry.uid for entry in self.ledger.entries() if entry.rows == (row,)]
        self.ledger.drop_row(row, here)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for entry in self.ledger.expire(self.now):
            assert entry.stage is Stage.HELD

    @invariant()
    def sums_are_exact(self) -> None:
        for without in ("", "a"):
            recount = np.zeros(5, np.int64)
            for entry in self.ledger.entries():
                if entry.uid != without:
                    for row in entry.rows:
                        recount[row] += entry.millicpu
            assert self.ledger.charged(5, without).tolist() == recount.tolist()

    @invariant()
    def what_is_promised_is_not_held(self) -> None:
        recount = np.zeros(5, np.int64)
        for entry in self.ledger.entries():
            if entry.stage is not Stage.HELD:
                recount[list(entry.rows)] += entry.millicpu
        assert self.ledger.promised(5).tolist() == recount.tolist()

    @invariant()
    def what_is_bound_is_neither_held_nor_being_bound(self) -> None:
        bound = [entry for entry in self.ledger.entries() if entry.stage is Stage.BOUND]
        assert self.ledger.bound_millicpu() == sum(entry.millicpu for entry in bound)


Bookkeeping.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestBookkeeping = Bookkeeping.TestCase


def test_an_entry_cannot_be_changed() -> None:
    ledger = Ledger()
    hold(ledger, "a", 1, (0,))
    with pytest.raises(AttributeError):
        ledger.entries()[0].millicpu = 2  # type: ignore[misc]
