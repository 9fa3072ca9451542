"""When a head is used and what it may choose: the table against a slow reading of its rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.actions import HEADS
from esper.heads import Head, HeadTable

NESTED = HeadTable(
    [
        Head("verb", 4),
        Head("object", 3, parent="verb", used_when={"verb": (1, 2, 3)}),
        Head("manner", 2, parent="object", used_when={"object": (0, 2)}),
        Head("place", 3, used_when={"verb": (0, 3), "manner": (1,)}),
        Head("loud", 2),
        Head("never", 2, used_when={"verb": ()}),
        Head("tail", 2, parent="manner"),
    ]
)


def used(table: HeadTable, choices: dict[str, int]) -> set[str]:
    """One row after the other: its parent is used, and every ancestor that it names is used and chose as it says."""
    found: set[str] = set()
    for head in table:
        hangs_on_used = head.parent is None or head.parent in found
        if hangs_on_used and all(a in found and choices[a] in set(c) for a, c in head.used_when.items()):
            found.add(head.name)
    return found


def every_choice(table: HeadTable) -> list[dict[str, int]]:
    return [dict(zip(table.names, c, strict=True)) for c in itertools.product(*map(range, table.sizes(2).values()))]


@pytest.mark.parametrize("table", [NESTED, HeadTable(HEADS[:4])], ids=["nested", "growth"])
def test_a_head_is_used_as_its_row_and_those_of_its_ancestors_say(table: HeadTable) -> None:
    rows = every_choice(table)
    expected = [[name in used(table, row) for name in table.names] for row in rows]
    assert [[table.is_used(name, row) for name in table.names] for row in rows] == expected
    for make in (np.array, torch.tensor):
        choices = {name: make([row[name] for row in rows]) for name in table.names}
        assert [table.is_used(name, choices).tolist() for name in table.names] == np.array(expected).T.tolist()


def test_two_heads_are_used_together_if_some_action_uses_both() -> None:
    rows = [used(NESTED, row) for row in every_choice(NESTED)]
    for one, other in itertools.product(NESTED.names, repeat=2):
        assert NESTED.together(one, other) == any({one, other} <= row for row in rows), (one, other)


def test_the_users_of_a_head_are_those_that_hang_on_its_choice() -> None:
    assert HEADS.users("op").keys() == set(HEADS.names) - {"op"}
    assert HEADS.users("blueprint") == {}
    assert NESTED.users("object") == {"manner": {0, 2}, "place": {0, 2}, "tail": {0, 2}}


@given(st.integers(0, 2**31), st.lists(st.integers(1, 3), max_size=2))
def test_a_conditional_mask_is_read_at_the_choice_of_the_parent(seed: int, batch: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(*batch, 4, 3, generator=generator) < 0.5
    verb = torch.randint(4, batch, generator=generator)
    found = NESTED.allowed("object", mask, {"verb": verb})
    assert found.shape == (*batch, 3)
    for row in itertools.product(*map(range, batch)):
        assert found[row].tolist() == mask[(*row, int(verb[row]))].tolist()
    plain = mask[..., 0, :]
    assert NESTED.allowed("object", plain, {"verb": verb}) is plain
    assert NESTED.allowed("loud", plain, {"verb": verb}) is plain


def test_a_mask_of_one_row_is_read_at_an_integer() -> None:
    mask = np.eye(4, 3, dtype=bool)
    assert NESTED.allowed("object", mask, {"verb": 2}).tolist() == [False, False, True]
    assert NESTED.allowed("object", mask[0], {"verb": 2}).tolist() == [True, False, False]


def test_a_mask_may_be_plain_or_hang_on_the_parent() -> None:
    assert HEADS.mask_shapes("op", num_slots=5) == ((6,),)
    assert HEADS.mask_shapes("slot", num_slots=5) == ((5,), (6, 5))
    assert HEADS.mask_shapes("blueprint", num_slots=5) == ((13,), (5, 13))
