"""The heads table and one decision."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.actions import BLUEPRINT_NAMES, HEAD_NAMES, HEADS, Decision
from esper.heads import Head, HeadTable
from esper.lifecycle import Op

decisions = st.builds(
    Decision,
    op=st.sampled_from(Op),
    slot=st.integers(0, 7),
    **{head.name: st.integers(0, head.num_choices - 1) for head in HEADS[2:]},
)


def test_the_heads_are_those_of_the_design():
    assert HEAD_NAMES == ("op", "slot", "blueprint", "style", "tempo", "curve", "alpha_target")
    assert HEADS.sizes(num_slots=5) == dict(zip(HEAD_NAMES, (6, 5, 13, 3, 4, 3, 3), strict=True))
    assert len(set(BLUEPRINT_NAMES)) == 13


@given(decisions)
def test_a_decision_survives_the_round_trip(decision):
    assert Decision.from_mapping(decision.to_mapping()) == decision


def test_a_decision_in_words():
    slots = ("stem", "layer1")
    conv = BLUEPRINT_NAMES.index("conv")
    assert Decision(Op.GERMINATE, 1, conv).describe(slots) == "GERMINATE conv (add) in layer1"
    assert Decision(Op.ADVANCE, 0, tempo=1).describe(slots) == "ADVANCE stem to 1.0 (fast, linear)"
    assert Decision().describe(slots) == "WAIT"


def test_a_choice_outside_its_head_is_refused():
    with pytest.raises(ValueError, match="head 'style' takes a choice from 0 to 2, got 3"):
        Decision(Op.GERMINATE, style=3)
    with pytest.raises(ValueError, match="not a valid Op"):
        Decision(6)
    with pytest.raises(ValueError, match="unknown action head"):
        Decision.from_mapping({"operation": 1})


def test_a_table_survives_the_round_trip():
    assert HeadTable.from_json(HEADS.to_json()) == HEADS


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([], "at least one head"),
        ([Head("a", 2), Head("a", 3)], "two heads are named 'a'"),
        ([Head("a", 0)], "is the root"),
        ([Head("a", 2, parent="b"), Head("b", 2)], "is the root"),
        ([Head("a", 2), Head("b", 2, parent="c"), Head("c", 2)], "must stand before it"),
        ([Head("a", 2), Head("b", 2, parent="a", used_when={"a": (2,)})], "outside head 'a'"),
        ([Head("a", 2), Head("b", 2, used_when={"c": (0,)})], "does not stand before it"),
        ([Head("a", 2), Head("s", 0), Head("b", 2, used_when={"s": (0,)})], "whose choices are slots"),
        ([Head("a", 2, choices=("x",))], "1 choice names"),
        ([Head("a", -1)], "0 \\(the slots\\) or more"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(heads, message):
    with pytest.raises(ValueError, match=message):
        HeadTable(heads)
