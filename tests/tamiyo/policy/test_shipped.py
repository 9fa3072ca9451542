"""The trained Tamiyo that comes with Esper."""

import json
from itertools import takewhile

import numpy as np
import pytest
import torch
from torch import nn

import esper
from esper.actions import HEAD_NAMES
from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation.episodes import run_episodes
from esper.tamiyo.policy.registry import SHIPPED, make_policy, trained_on
from esper.tasks import TASKS


def named_tasks(command):
    """The tasks that an ``esper train`` command trains on."""
    words = command.split()
    return {*takewhile(lambda word: not word.startswith("--"), words[words.index("--task") + 1 :])}


def test_it_is_small_and_says_what_it_was_trained_on():
    assert (SHIPPED / "policy.safetensors").stat().st_size < 4e6
    card = json.loads((SHIPPED / "card.json").read_text(encoding="utf-8"))
    assert all(stage["command"].startswith("esper train ") for stage in card["stages"])
    assert trained_on("tamiyo") == tuple(card["tasks"])
    assert set(card["tasks"]) == set.union(*(named_tasks(stage["command"]) for stage in card["stages"]))
    assert set(card["tasks"]) < set(TASKS), "some task is left unseen"


class Chain(nn.Module):
    """A small MLP whose hidden layers are slots."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(layers))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.stem(x)
        for layer in self.layers:
            h = h + layer(h)
        return self.head(h)


@pytest.mark.parametrize("slots", [1, 3, 8, 24])
def test_one_file_drives_a_host_of_any_number_of_slots(slots):
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = Chain(slots)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    growth = esper.Growth(model, optimizer, slots=["layers.*"], example_input=x[:2], policy="tamiyo", horizon=8)

    def evaluate():
        logits = model(x)
        return nn.functional.cross_entropy(logits, y), (logits.argmax(1) == y).float().mean()

    bundle, seen, answers = growth.policy.bundle, [], []
    act = bundle.act

    def recorded(inputs, *args):
        seen.append(inputs)
        answers.append(act(inputs, *args))
        return answers[-1]

    bundle.act = recorded
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        growth.step(evaluate)
    assert [inputs.blueprint_indices.shape for inputs in seen] == [(1, slots)] * 7  # the last step decides nothing
    assert all(torch.isfinite(answer.op_values).all() for answer in answers)
    assert torch.isfinite(model(x)).all()


def test_it_decides_by_what_it_sees_and_what_it_has_seen():
    """Its answers in another run are others, in the same run the same, and after another past others again."""
    network = make_policy("tamiyo").bundle.network
    state = torch.from_numpy(np.random.default_rng(0).normal(size=(4, network.config.state_dim)).astype(np.float32))
    empty, free = torch.full((4, network.config.num_slots), -1), dict.fromkeys(HEAD_NAMES)
    outputs = network.get_action(state, empty, free, deterministic=True)
    again = network.get_action(state, empty, free, deterministic=True)
    assert torch.equal(outputs.op_values, again.op_values)
    assert len(outputs.op_values.unique(dim=0)) == 4
    later = network.get_action(state, empty, free, outputs.hidden, deterministic=True)
    assert (later.op_values != outputs.op_values).any(dim=1).all()


def test_it_has_learned_to_grow():
    """On digits the host alone is far too small: any controller worth its place brings ten points of J and more."""
    env = GrowthVectorEnv(1, "digits", autoreset_mode="NextStep")
    try:
        (grown,), (alone,) = (run_episodes(env, make_policy(name), [11], arm=name) for name in ("tamiyo", "wait"))
    finally:
        env.close()
    assert grown.J > alone.J + 0.1
