"""Names to rows, all at once: the same as one by one."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extender.node_index import NodeIndex

NAMES = st.text(max_size=8)


def one_by_one(index: NodeIndex, names: Sequence[str]) -> list[int]:
    """What a dict says."""
    return [index.get(name, -1) for name in names]


@given(st.lists(NAMES, unique=True, max_size=40), st.lists(NAMES, max_size=40))
def test_all_at_once_says_what_a_dict_does(known: list[str], others: list[str]) -> None:
    index = NodeIndex((name, row) for row, name in enumerate(known))
    asked = [*others, *known, *known[::-1]]
    assert index.rows(asked).tolist() == one_by_one(index, asked)


def test_no_names_and_no_nodes() -> None:
    assert NodeIndex().rows([]).tolist() == []
    assert NodeIndex().rows(["", "a"]).tolist() == [-1, -1]
    assert NodeIndex({"a": 3}).rows([]).tolist() == []


class Clash(str):
    """A name whose hash ends as all others' do: they want the same slot."""

    __slots__ = ()

    def __hash__(self) -> int:
        return super().__hash__() << 20


def test_names_that_want_the_same_slot_are_told_apart() -> None:
    names = [Clash(f"n{at}") for at in range(50)]
    index = NodeIndex((name, row) for row, name in enumerate(names))
    assert index.rows([*names, Clash("other")]).tolist() == [*range(50), -1]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 5000])
def test_most_names_have_a_slot_of_their_own(count: int) -> None:
    index = NodeIndex((f"node-{at:05d}.example", at) for at in range(count))
    assert index.rows(list(index)).tolist() == list(range(count))
