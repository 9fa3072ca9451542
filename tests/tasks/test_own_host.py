"""A host of the user's own takes the place of a task's, or of the one that is chosen by the form of the data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from esper.tasks import HOSTS, Rehosted, get_task, register_host


@pytest.fixture(autouse=True)
def _registry():
    yield
    HOSTS.clear()


def two_layers(x, outputs, width=1.0):
    hidden = round(16 * width)
    return nn.Sequential(nn.Linear(x.shape[1], hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, outputs))


def test_all_but_the_host_is_that_of_the_task():
    register_host(two_layers)
    wine, mine = get_task("wine"), Rehosted(get_task("wine"), "two_layers", ["1"])
    assert mine.slots == ("1",)
    assert {name: getattr(mine, name) for name in vars(mine) if name[0] != "_" and name != "slots"} == {
        name: getattr(wine, name) for name in vars(mine) if name[0] != "_" and name != "slots"
    }
    assert torch.equal(mine.splits().train_x, wine.splits().train_x)
    assert mine.chance_score == wine.chance_score
    x, y = wine.splits().val_x, wine.splits().val_y
    host = mine.build_host()
    assert host.training
    assert mine.loss(host(x), y) == wine.loss(host(x), y)
    assert mine.score(host(x), y) == wine.score(host(x), y)


def test_trying_it_moves_neither_its_statistics_nor_the_random_state():
    register_host(two_layers)
    torch.manual_seed(3)
    host = Rehosted(get_task("wine"), "two_layers").build_host(width=2.0)
    after = torch.rand(1)
    torch.manual_seed(3)
    expected = two_layers(get_task("wine").splits().train_x, 3, width=2.0)
    assert torch.rand(1) == after
    assert all(map(torch.equal, host.state_dict().values(), expected.state_dict().values()))


def test_what_is_frozen_in_it_stays_frozen():
    """A normalisation that was set to evaluation, as of a pretrained part."""

    def frozen(x, outputs):
        host = two_layers(x, outputs)
        host[1].eval()
        return host

    register_host(frozen)
    host = Rehosted(get_task("wine"), "frozen").build_host()
    assert [module.training for module in host] == [True, False, True]


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (lambda x, outputs: nn.Linear(x.shape[1], 5), r"expected outputs \[2, 3\] for inputs \[2, 13\], got \[2, 5\]"),
        (lambda x, outputs: nn.Linear(7, outputs), r"failed on two inputs, \[2, 13\] torch.float32: RuntimeError"),
        (lambda x, outputs: x, "expected a torch.nn.Module, got Tensor"),
        (lambda x, outputs: nn.LSTM(x.shape[1], outputs), r"expected outputs .* got tuple"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(builder, message):
    builder.__name__ = "mine"
    register_host(builder)
    with pytest.raises(ValueError, match=f"host 'mine'.*{message}"):
        Rehosted(get_task("wine"), "mine").build_host()


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("two_layer", "unknown host 'two_layer'; did you mean 'two_layers'"),
        ("nowhere:net", "importing 'nowhere' failed"),
        ("math:pi", "'math:pi': expected a function that builds a host, got float"),
    ],
)
def test_a_host_that_is_not_there_is_refused(host, message):
    register_host(two_layers)
    with pytest.raises(ValueError, match=message):
        Rehosted(get_task("wine"), host)


def test_a_width_or_depth_that_it_does_not_take_is_refused():
    register_host(two_layers)
    with pytest.raises(ValueError, match="host 'two_layers' has no parameter 'depth', got depth=2"):
        Rehosted(get_task("wine"), "two_layers").build_host(depth=2)
