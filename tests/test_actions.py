"""The heads table and one decision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import esper
from episodes import quick_task
from esper.actions import ALPHA_TARGETS, BLUEPRINT_NAMES, HEAD_NAMES, HEADS, Decision, slot_index
from esper.env import GrowthVectorEnv
from esper.evaluation.episodes import run_episodes, validation_objectives
from esper.heads import Head, HeadTable
from esper.lifecycle import IllegalMoveError, Op
from esper.network.growing_network import GrowingNetwork
from esper.tamiyo.policy.registry import make_policy

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
    assert Decision(Op.GERMINATE, "layer1", "conv").describe(slots) == "GERMINATE conv (add) in layer1"
    assert Decision(Op.ADVANCE, 0, tempo=1).describe(slots) == "ADVANCE stem to 1.0 (fast, linear)"
    assert Decision().describe(slots) == "WAIT"


@pytest.mark.parametrize("head", HEADS[2:6], ids=lambda head: head.name)
def test_a_choice_by_name_is_the_choice_by_index(head):
    for index, name in enumerate(head.choices):
        assert Decision(**{head.name: name}) == Decision(**{head.name: index})


def test_an_alpha_target_is_named_by_its_value():
    assert [Decision(alpha_target=value).alpha_target for value in ALPHA_TARGETS] == [0, 1, 2]
    assert Decision(alpha_target=1) == Decision(alpha_target=ALPHA_TARGETS[1])
    assert Decision(alpha_target=np.float64(0.7)) == Decision(alpha_target=0.7)
    with pytest.raises(TypeError):
        Decision(alpha_target=np.float32(0.7))


def test_a_slot_is_named_where_the_slots_are_known():
    slots = ("layer1", "layer2")
    named = Decision(Op.PRUNE, "layer2", tempo="fast")
    assert named.to_mapping(slots) == Decision(Op.PRUNE, 1, tempo="fast").to_mapping()
    assert [slot_index(slot, slots) for slot in ("layer1", "layer2", 1, np.int64(0))] == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="there is no slot 'layer3'; did you mean layer2 or layer1"):
        Decision(Op.PRUNE, "layer3").to_mapping(slots)
    with pytest.raises(ValueError, match="slots' names are not known; give its index"):
        named.to_mapping()


def two_slots():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def test_a_network_takes_the_name_of_its_slot():
    network = GrowingNetwork(two_slots(), ["1", "3"], torch.zeros(1, 4))
    (event,) = network.step(Decision(Op.GERMINATE, "3", "norm"))
    assert (event.slot, event.blueprint) == ("3", "norm")
    network.check(Decision(Op.ADVANCE, "3"))
    with pytest.raises(IllegalMoveError, match="slot '1'"):
        network.check(Decision(Op.ADVANCE, "1"))
    for call in (network.check, network.step):
        with pytest.raises(ValueError, match=r"there is no slot '2'; .*The choices are 1, 3"):
            call(Decision(Op.ADVANCE, "2"))


def test_a_rule_may_name_slots_in_a_run_of_ones_own():
    host = two_slots()
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1)

    def rule(run):
        free = run.slot_names == ("1", "3") and run.allows(Op.GERMINATE, "3")
        return Decision(Op.GERMINATE, slot="3", blueprint="mlp") if free else Decision()

    growth = esper.Growth(host, optimizer, slots=["1", "3"], example_input=torch.zeros(1, 4), policy=rule)
    assert [growth.step(lambda: (1.0, 0.5)).decided for _ in range(2)] == ["GERMINATE mlp (add) in 3", "WAIT"]


def test_a_rule_may_name_slots_in_an_evaluation():
    env = GrowthVectorEnv(2, quick_task("digits", horizon=2), autoreset_mode="NextStep")
    last = env.task.slots[-1]

    def rule(run):
        return Decision(Op.GERMINATE, last, "norm") if run.allows(Op.GERMINATE, last) else Decision()

    policy = make_policy(rule)
    for result in run_episodes(env, policy, [1, 2], arm="rule"):
        assert result.slots[last][-1][:2] == ("TRAINING", "norm")
        assert all(result.slots[name][-1][0] == "DORMANT" for name in env.task.slots[:-1])
    assert validation_objectives(env, policy, [1, 2]).shape == (2,)


def test_a_choice_outside_its_head_is_refused():
    with pytest.raises(ValueError, match="there is no blueprint 'nrom'; did you mean norm"):
        Decision(Op.GERMINATE, blueprint="nrom")
    with pytest.raises(ValueError, match=r"there is no alpha_target '0\.6'; .*The choices are 0\.5, 0\.7, 1\.0"):
        Decision(Op.ADVANCE, alpha_target=0.6)
    with pytest.raises(ValueError, match="head 'style' takes a choice from 0 to 2, got 3"):
        Decision(Op.GERMINATE, style=3)
    with pytest.raises(ValueError, match="head 'op' takes a choice from 0 to 5"):
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
        ([Head("a", 0)], "is the op"),
        ([Head("a", 2, parent="b"), Head("b", 2)], "is the op"),
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
