"""The life of a seed: which ops each stage accepts."""

import itertools

import pytest

from esper.lifecycle import ACTIVE_STAGES, LEGAL_OPS, IllegalMoveError, Op, Stage, check_legal, is_legal


def test_every_stage_has_its_ops():
    assert set(LEGAL_OPS) == set(Stage)
    assert all(Op.WAIT not in ops for ops in LEGAL_OPS.values()), "WAIT addresses no slot"


@pytest.mark.parametrize(("op", "stage"), list(itertools.product(Op, Stage)))
def test_check_agrees_with_the_table(op, stage):
    if op in LEGAL_OPS[stage]:
        check_legal(op, stage, slot="layer1")
        assert is_legal(op, stage)
    else:
        with pytest.raises(IllegalMoveError, match=f"{op.name} was asked of slot 'layer1', which is {stage.name}"):
            check_legal(op, stage, slot="layer1")


@pytest.mark.parametrize("stage", Stage)
def test_a_refused_op_is_told_what_would_be_accepted(stage):
    accepted = ", ".join(sorted(op.name for op in LEGAL_OPS[stage])) or r"nothing \(WAIT\)"
    with pytest.raises(IllegalMoveError, match=f"layer1', which is {stage.name}; it accepts only: {accepted}. Choose"):
        check_legal(Op.WAIT, stage, slot="layer1")


def test_a_living_seed_can_always_be_pruned_and_nothing_else_can():
    assert {stage for stage in Stage if is_legal(Op.PRUNE, stage)} == set(ACTIVE_STAGES)


def test_a_seed_that_is_ramping_down_accepts_nothing():
    assert not any(is_legal(op, Stage.BLENDING, pruning=True) for op in Op)
    with pytest.raises(IllegalMoveError, match=r"BLENDING and already being pruned; it accepts only: nothing \(WAIT\)"):
        check_legal(Op.PRUNE, Stage.BLENDING, slot="layer1", pruning=True)
