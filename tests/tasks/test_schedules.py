"""How the learning rate moves over a run."""

import pytest
import torch

from esper.tasks import SCHEDULES


def rates(name, horizon=24):
    return [SCHEDULES[name](done, horizon) for done in range(horizon)]


def test_the_cosine_is_that_of_pytorch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)
    theirs = []
    for _ in range(24):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates("cosine") == pytest.approx(theirs)


def test_warmup_stable_decay_rises_stays_and_falls():
    found = rates("warmup-stable-decay", 40)
    assert found[:3] == [0.5, 1.0, 1.0]
    assert found[2:33] == [1.0] * 31
    assert found[-8:] == pytest.approx([k / 8 for k in range(8, 0, -1)])


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("horizon", [1, 2, 12, 100])
def test_a_rate_is_never_negative_nor_above_the_highest_and_not_0_while_the_run_lasts(name, horizon):
    assert all(0 < rate <= 1 for rate in rates(name, horizon))
    assert SCHEDULES[name](horizon + 5, horizon) >= 0
