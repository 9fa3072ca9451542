"""A name or a directory means the same policy wherever it is given."""

from __future__ import annotations

import json

import pytest
import torch

from esper.tamiyo.networks.factored_lstm import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tamiyo.policy.registry import POLICIES, SHIPPED, directory_of, make_policy, trained_on
from esper.tamiyo.policy.rules import WaitPolicy


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A directory called ``tamiyo`` where one stands: a small policy whose card names a task of its own."""
    monkeypatch.chdir(tmp_path)
    network = FactoredRecurrentActorCritic(hidden_dim=16, head_dim=8, slot_dim=8)
    LSTMPolicyBundle(network).save(tmp_path / "tamiyo")
    (tmp_path / "tamiyo" / "card.json").write_text(json.dumps({"tasks": ["mine"]}))
    return tmp_path / "tamiyo"


def test_the_card_is_that_of_the_policy_that_would_play(saved):
    """A name goes before a directory of the same name, for the card as for the weights."""
    assert make_policy("tamiyo").bundle.network.config != make_policy(saved).bundle.network.config
    assert trained_on("tamiyo") == tuple(json.loads((SHIPPED / "card.json").read_text(encoding="utf-8"))["tasks"])
    assert trained_on(saved) == trained_on("./tamiyo/") == ("mine",)


def test_what_has_no_card_has_no_known_tasks(saved, monkeypatch):
    (saved / "card.json").unlink()
    assert trained_on(saved) == ()
    assert trained_on("heuristic") == ()
    monkeypatch.setitem(POLICIES, "tamiyo", WaitPolicy)
    assert isinstance(make_policy("tamiyo"), WaitPolicy)
    assert trained_on("tamiyo") == ()


@pytest.mark.parametrize("ask", [make_policy, trained_on, directory_of])
def test_an_unknown_name_is_refused_by_all(ask):
    with pytest.raises(ValueError, match=r"unknown policy 'tamyo'; did you mean 'tamiyo'"):
        ask("tamyo")


def test_making_a_policy_moves_nobodys_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for name in POLICIES:
        make_policy(name)
        assert torch.equal(torch.get_rng_state(), before), name
