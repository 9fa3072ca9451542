"""Choices that are described: the blueprint head reads what is known of each blueprint in the slot it was drawn for."""

from __future__ import annotations

import pytest
import torch

from episodes import quick_task
from esper import simic
from esper.actions import HEADS
from esper.auditions import Auditions
from esper.env.episode import Variants
from esper.env.growth_env import GrowthVectorEnv
from esper.observation import PROSPECT_SIZE, UNKNOWN
from esper.simic.ppo import PPOConfig
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, reading_prospects

ALL = dict.fromkeys(HEADS.names)
DESCRIBED = {"described_head": "blueprint", "prospect_size": PROSPECT_SIZE}


def state(rows: int = 4, slots: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(rows, 24 + 34 * slots), torch.randint(-1, 13, (rows, slots))


def reader(**sizes: object) -> FactoredRecurrentActorCritic:
    """A network whose descriptions already have a say."""
    torch.manual_seed(1)
    network = FactoredRecurrentActorCritic(**DESCRIBED, **sizes)
    with torch.no_grad():
        for layer in (network.prospects.query, network.prospects.for_slot):
            layer.weight.normal_(std=0.5)
    return network


def prospects(rows: int = 4, slots: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {"prospects": torch.rand(rows, slots, 13, PROSPECT_SIZE)}


def blueprint_probs(network: FactoredRecurrentActorCritic, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """[rows, 13] of the blueprint head, after a germination in slot 1."""
    rows = len(parts["prospects"])
    states, indices = state(rows)
    found = []
    for blueprint in range(13):
        chosen = {"op": 1, "slot": 1, "blueprint": blueprint}
        actions = {name: torch.full((rows, 1), chosen.get(name, 0)) for name in HEADS.names}
        sequences = {name: part[:, None] for name, part in parts.items()}
        result = network.evaluate_actions(states[:, None], indices[:, None], actions, ALL, parts=sequences)
        found.append(result.log_probs["blueprint"][:, 0].exp())
    return torch.stack(found, -1)


def test_a_network_that_learns_to_read_descriptions_begins_as_what_it_was() -> None:
    torch.manual_seed(3)
    before = LSTMPolicyBundle(FactoredRecurrentActorCritic())
    after = reading_prospects(before, "blueprint", PROSPECT_SIZE)
    states, indices = state()
    outputs = [
        bundle.network.get_action(states, indices, ALL, generator=torch.Generator().manual_seed(0), parts=parts)
        for bundle, parts in ((before, {}), (after, {}), (after, prospects()))
    ]
    for output in outputs[1:]:
        for name in HEADS.names:
            assert torch.equal(output.actions[name], outputs[0].actions[name])
            assert torch.equal(output.log_probs[name], outputs[0].log_probs[name])
        assert torch.equal(output.op_values, outputs[0].op_values)


def test_the_blueprint_head_reads_the_descriptions_in_the_slot_that_was_drawn() -> None:
    network, given = reader(), prospects()
    with torch.no_grad():  # the slots are told nothing, so that only the head reads
        network.prospects.for_slot.weight.zero_()
    plain = blueprint_probs(network, given)
    for slot, is_drawn in ((0, False), (1, True)):
        other = {"prospects": given["prospects"].clone()}
        other["prospects"][:, slot, 5] = 0.0
        assert torch.allclose(blueprint_probs(network, other), plain) is not is_drawn


def test_a_choice_is_judged_by_its_description_not_its_index() -> None:
    network, given = reader(), prospects()
    with torch.no_grad():  # of the head's own logits nothing is left
        start = sum(network.tree.output_sizes[:2])
        network.tree.output.weight[start : start + 13].zero_()
        network.tree.output.bias[start : start + 13].zero_()
    order = torch.randperm(13)
    moved = {"prospects": given["prospects"][:, :, order]}
    assert torch.allclose(blueprint_probs(network, moved), blueprint_probs(network, given)[:, order], atol=1e-6)


def test_permuting_the_slots_permutes_what_is_decided() -> None:
    network, given = reader(), prospects()
    states, indices = state()
    order = torch.tensor([2, 0, 1])
    run, slots = states[:, :24], states[:, 24:].view(4, 3, 34)
    there = network.state_value(states, indices, ALL, parts=given)
    moved = torch.cat([run, slots[:, order].flatten(1)], 1)
    here = network.state_value(moved, indices[:, order], ALL, parts={"prospects": given["prospects"][:, order]})
    assert torch.allclose(there, here, atol=1e-6)


def test_what_is_not_known_is_no_number() -> None:
    network, given = reader(), prospects()
    unknown = {"prospects": given["prospects"].clone()}
    unknown["prospects"][..., 5] = UNKNOWN
    zero = {"prospects": given["prospects"].clone()}
    zero["prospects"][..., 5] = 0.0
    assert not torch.allclose(blueprint_probs(network, unknown), blueprint_probs(network, zero))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"prospects": torch.zeros(4, 3, 12, PROSPECT_SIZE)},
            r"expected prospects as numbers of shape \[4, 3, 13, 10\]",
        ),
        ({"prospects": torch.full((4, 3, 13, PROSPECT_SIZE), float("nan"))}, "prospects"),
    ],
)
def test_descriptions_that_do_not_fit_are_named(parts: dict[str, torch.Tensor], message: str) -> None:
    states, indices = state()
    with pytest.raises(ValueError, match=message):
        reader().get_action(states, indices, ALL, parts=parts)


def test_sizes_that_describe_no_head_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a described_head whose parent points at slots"):
        FactoredRecurrentActorCritic(described_head="op", prospect_size=3)
    with pytest.raises(ValueError, match="prospect_size of 1 or more"):
        FactoredRecurrentActorCritic(described_head="blueprint")


def test_training_on_auditions_has_a_first_ratio_of_1_and_the_file_says_that_it_lives_by_them(tmp_path) -> None:
    envs = GrowthVectorEnv(
        4, quick_task("wine", horizon=6), auditions=Auditions(decisions=1), variants=Variants(rent=(0.005, 0.1))
    )
    options = simic.TrainConfig(
        updates=2,
        num_steps=6,
        normalize_rewards=False,
        network=simic.NetworkOptions(hidden_dim=16, head_dim=16, slot_dim=16, prospects=True),
        ppo=PPOConfig(epochs=1, minibatches=1),
    )
    result = simic.train(envs, config=options)
    envs.close()
    assert result.policy.network.prospects is not None
    assert all(row[f"first_ratio_error/{head}"] < 1e-5 for row in result.metrics for head in HEADS.names)
    assert result.policy.network.prospects.query.weight.abs().sum() > 0, "it has learned to read"
    result.policy.auditions = Auditions(decisions=1)
    result.policy.save(tmp_path)
    again = LearnedPolicy(LSTMPolicyBundle.load(tmp_path))
    assert again.auditions == Auditions(decisions=1)
    assert again.bundle.network.config == result.policy.network.config
