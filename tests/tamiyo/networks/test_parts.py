"""Parts of an observation: images of any size and layout, indices, modules of the user's own."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from esper.heads import Head, HeadTable
from esper.tamiyo.networks import FactoredRecurrentActorCritic, NetworkConfig
from esper.tamiyo.networks.parts import ImageEncoder, IndexEncoder, Part, PartEncoder
from esper.tamiyo.policy import LSTMPolicyBundle, PolicyInput

HEADS = HeadTable([Head("move", 3), Head("aim", 2, kind="gaussian", used_when={"move": (1, 2)})])
PARTS = (
    Part(name="camera", kind="image", shape=(3, 9, 9), high=255.0),
    Part(name="card", kind="indices", shape=(), choices=(1000,)),
    Part(name="sound", kind="own", shape=(5,)),
)
MASKS: dict[str, Tensor | None] = {"move": None, "aim": None}


def own() -> dict[str, nn.Module]:
    return {"sound": nn.Sequential(nn.Linear(5, 4), nn.Tanh())}


def bundle(**sizes: object) -> LSTMPolicyBundle:
    config = NetworkConfig(heads=HEADS, state_dim=2, parts=PARTS, hidden_dim=16, head_dim=8, part_dim=12)
    return LSTMPolicyBundle(FactoredRecurrentActorCritic(config, encoders=own(), **sizes))


def shown(*batch: int) -> PolicyInput:
    parts = {
        "camera": torch.randint(256, (*batch, 3, 9, 9), dtype=torch.uint8),
        "card": torch.randint(1000, batch),
        "sound": torch.randn(*batch, 5),
    }
    return PolicyInput(torch.randn(*batch, 2), None, MASKS, parts)


@pytest.mark.parametrize("shape", [(3, 7, 7), (1, 3, 3), (4, 84, 84), (3, 210, 160), (12, 5, 100), (1, 8, 8)])
def test_images_small_and_large_are_encoded(shape: tuple[int, int, int]) -> None:
    encoder = ImageEncoder(Part(name="image", kind="image", shape=shape, high=255.0), 16)
    image = torch.randint(256, (2, *shape), dtype=torch.uint8)
    encoded = encoder(image)
    assert encoded.shape == (2, 16)
    assert not torch.equal(encoded[0], encoded[1])
    assert sum(p.numel() for p in encoder.parameters()) < 400_000


@pytest.mark.parametrize("height", [1, 8, 9, 17, 32, 33, 34, 35, 36, 37, 84, 99])
def test_every_pixel_is_seen(height: int) -> None:
    """Whatever the sides: kernels that are laid further apart must not end before the last row or column."""
    encoder = ImageEncoder(Part(name="image", kind="image", shape=(1, height, height + 3)), 16)
    seen = torch.ones(1, 1, height, height + 3, requires_grad=True)
    passed = seen
    for layer in encoder.layers:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data.fill_(1.0)
            passed = layer(passed)
    passed.sum().backward()
    assert seen.grad is not None
    assert seen.grad.gt(0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_see_images_channels_last_and_encode_the_same(channels: int) -> None:
    """In that layout they are faster; weights keep theirs, as files hold them."""
    encoder = ImageEncoder(Part(name="image", kind="image", shape=(channels, 20, 20), high=255.0), 16)
    image, seen = torch.randint(256, (2, channels, 20, 20), dtype=torch.uint8), []
    plain = encoder.layers(image / 255)
    encoder.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.stride()))
    torch.testing.assert_close(encoder(image), plain)
    assert seen[0][1] == 1
    assert all(p.is_contiguous() for p in encoder.parameters())


def test_what_is_shown_in_few_of_many_levels_is_seen() -> None:
    """Numbers of objects from 0 to 10, in bytes: the encoding says about as much as of the full range."""
    torch.manual_seed(0)
    encoder = ImageEncoder(Part(name="image", kind="image", shape=(3, 7, 7), high=255.0), 32)
    spread = [encoder(torch.randint(most, (64, 3, 7, 7), dtype=torch.uint8)).std(0).mean().item() for most in (11, 255)]
    assert spread[0] > 0.5 * spread[1]


def test_indices_are_encoded_as_a_linear_layer_encodes_one_hot_numbers() -> None:
    encoder = IndexEncoder(Part(name="dice", kind="indices", shape=(3,), choices=(4, 2, 5)), 6)
    indices = torch.tensor([[3, 1, 4], [0, 0, 0]])
    one_hot = torch.cat(
        [torch.nn.functional.one_hot(i, n) for i, n in zip(indices.T, (4, 2, 5), strict=True)], dim=-1
    ).float()
    torch.testing.assert_close(encoder(indices), one_hot @ encoder.table.weight)


def test_rollout_and_update_agree_on_parts_and_gradients_reach_every_encoder() -> None:
    policy, inputs = bundle(), shown(4, 6)
    hidden, rolled = policy.network.initial_hidden(4), []
    for step in range(6):
        rolled.append(policy.act(inputs.map(lambda x, t=step: x[:, t]), hidden))
        hidden = rolled[-1].hidden
    actions = {h: torch.stack([o.actions[h] for o in rolled], 1) for h in HEADS.names}
    evaluation = policy.evaluate_actions(inputs, actions, policy.network.initial_hidden(4))
    for h in HEADS.names:
        log_probs = torch.stack([o.log_probs[h] for o in rolled], 1)
        torch.testing.assert_close(evaluation.log_probs[h], log_probs, atol=1e-5, rtol=0)
    (evaluation.values.sum() + sum(x.sum() for x in evaluation.log_probs.values())).backward()
    for name, weight in policy.network.part_encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.any(), name


def test_no_encoder_sees_padding_and_the_rows_are_judged_the_same() -> None:
    policy, inputs = bundle(), shown(3, 4)
    valid = torch.tensor([[True, True, True, False], [True, False, True, True], [True, True, True, True]])
    counted: list[int] = []
    for encoder in policy.network.part_encoder.encoders:
        encoder.register_forward_hook(lambda module, given, encoded: counted.append(len(given[0])))
    actions = {"move": torch.ones(3, 4, dtype=torch.int64), "aim": torch.zeros(3, 4, 2)}
    given = (inputs, actions, policy.network.initial_hidden(3), ~valid)
    judged, whole = policy.judge_sequences(*given, valid), policy.judge_sequences(*given)
    assert counted == [10] * 3 + [12] * 3
    for found, expected in zip(judged, whole, strict=True):
        torch.testing.assert_close(found[valid.flatten()], expected[valid.flatten()])


def test_a_policy_with_parts_is_saved_and_its_own_encoders_are_asked_for(tmp_path) -> None:
    policy, inputs = bundle(), shown(3)
    policy.save(tmp_path)
    again = LSTMPolicyBundle.load(tmp_path, encoders=own())
    assert again.network.config == policy.network.config
    hidden = policy.network.initial_hidden(3)
    assert torch.equal(
        policy.act(inputs, hidden, deterministic=True).value, again.act(inputs, hidden, deterministic=True).value
    )
    with pytest.raises(
        ValueError, match=r"expected encoders, modules of your own, for the parts \['sound'\].*got \[\]"
    ):
        LSTMPolicyBundle.load(tmp_path)
    assert NetworkConfig.from_json(json.loads(json.dumps(policy.network.config.to_json()))) == policy.network.config


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Identity(), None),
        (
            nn.Unflatten(1, (5, 1)),
            r"'sound': expected \[N, E\], one vector per row of its input \[N, 5\], got \[2, 5, 1\]",
        ),
        (nn.LSTM(5, 3), "'sound': expected .* got tuple for N = 2"),
    ],
)
def test_an_encoder_that_does_not_fit_is_named(module: nn.Module, message: str | None) -> None:
    if message is None:
        assert PartEncoder(PARTS[2:], 12, {"sound": module}).size == 5
    else:
        with pytest.raises(ValueError, match=message):
            PartEncoder(PARTS[2:], 12, {"sound": module})


def test_what_is_frozen_in_an_encoder_stays_frozen() -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4).eval())
    PartEncoder(PARTS[2:], 12, {"sound": module})
    assert [each.training for each in module] == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": torch.zeros(2, 9, 9, 3)}, r"part 'camera': expected numbers of shape \[2, 3, 9, 9\], got"),
        ({"card": torch.tensor([0, 1000])}, r"part 'card': an index must be from 0 to below \(1000,\), got 1000"),
        ({"card": torch.tensor([0.0, 1.0])}, "part 'card': expected torch.int64 of shape"),
        ({"sound": torch.full((2, 5), torch.nan)}, "part 'sound' must be finite, got nan"),
        ({"smell": torch.zeros(2)}, r"expected the parts \['camera', 'card', 'sound'\] of the observation, got"),
    ],
)
def test_parts_that_do_not_fit_are_named(change: dict[str, Tensor], message: str) -> None:
    policy, inputs = bundle(), shown(2)
    inputs = inputs._replace(parts={**inputs.parts, **change})
    with pytest.raises(ValueError, match=message):
        policy.act(inputs, policy.network.initial_hidden(2))
