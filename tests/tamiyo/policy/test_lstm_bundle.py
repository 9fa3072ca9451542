"""The bundle: ordinary tensors from rollouts, no gradient from values, hidden states that can be trained on, files."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from esper import files
from esper.actions import HEAD_NAMES, HEADS
from esper.files import Format
from esper.heads import Head, HeadTable
from esper.simic.control.normalization import RunningMeanStd
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy import InferenceHiddenWarning, LSTMPolicyBundle, PolicyInput
from esper.tamiyo.policy.lstm_bundle import POLICY, POLICY_FILE

MakeInput = Callable[..., PolicyInput]
Network = FactoredRecurrentActorCritic


@pytest.fixture
def bundle(network: Network) -> LSTMPolicyBundle:
    return LSTMPolicyBundle(network)


def sequence(inputs: PolicyInput) -> PolicyInput:
    """Single steps as sequences of one."""
    return inputs.map(lambda x: x[:, None])


def gradients(bundle: LSTMPolicyBundle, inputs: PolicyInput, hidden: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Gradients of a loss over one stored step from ``hidden``."""
    with torch.no_grad():
        plain = (hidden[0].clone(), hidden[1].clone())
        actions = bundle.act(inputs, plain, deterministic=True).actions
    bundle.network.zero_grad()
    evaluation = bundle.evaluate_actions(sequence(inputs), {n: a[:, None] for n, a in actions.items()}, hidden)
    (sum(x.sum() for x in evaluation.log_probs.values()) + evaluation.values.sum()).backward()
    return [p.grad.clone() for p in bundle.network.parameters() if p.grad is not None]


# Values


def test_get_value_carries_no_gradient(bundle: LSTMPolicyBundle, make_input: MakeInput) -> None:
    inputs = make_input(8)
    value = bundle.get_value(inputs.features, bundle.initial_hidden(8), inputs.blueprint_indices, inputs.masks)
    assert value.shape == (8,)
    assert not value.requires_grad
    assert value.is_inference()
    with pytest.raises(RuntimeError, match="does not require grad"):
        value.sum().backward()
    assert all(p.grad is None for p in bundle.network.parameters())


def test_a_loss_on_get_value_is_silent_and_the_critic_learns_nothing(
    bundle: LSTMPolicyBundle, make_input: MakeInput
) -> None:
    """The wrong use that the docstring shows: nothing complains, for the policy's loss has a gradient."""
    inputs = make_input(8)
    output = bundle.act(inputs, bundle.initial_hidden(8))
    actions = {name: action[:, None] for name, action in output.actions.items()}

    def critic_gradients(*, right: bool) -> list[Tensor | None]:
        bundle.network.zero_grad()
        evaluation = bundle.evaluate_actions(sequence(inputs), actions)
        wrong = bundle.get_value(inputs.features, bundle.initial_hidden(8), inputs.blueprint_indices, inputs.masks)
        values = evaluation.values[:, 0] if right else wrong
        policy_loss = -sum(x[:, 0] for x in evaluation.log_probs.values()).mean()
        (policy_loss + 0.5 * (values - 1.0).pow(2).mean()).backward()
        assert bundle.network.tree.output.weight.grad.abs().sum() > 0
        return [p.grad for p in (bundle.network.critic.weight, bundle.network.critic_hidden.weight)]

    assert critic_gradients(right=False) == [None, None]
    assert all(grad.abs().sum() > 0 for grad in critic_gradients(right=True))


def test_get_value_names_the_blueprint_indices_that_are_missing(
    bundle: LSTMPolicyBundle, make_input: MakeInput
) -> None:
    with pytest.raises(ValueError, match=r"blueprint_indices are missing: a network with slots"):
        bundle.get_value(make_input(2).features, bundle.initial_hidden(2))


def test_get_value_is_the_expectation_of_q_under_the_policy(bundle: LSTMPolicyBundle, make_input: MakeInput) -> None:
    inputs = make_input(200)
    hidden = bundle.act(inputs, bundle.initial_hidden(200)).hidden
    value = bundle.get_value(inputs.features, hidden, inputs.blueprint_indices, inputs.masks)
    output = bundle.act(inputs, hidden)
    torch.testing.assert_close(value, output.state_value, atol=1e-5, rtol=0)
    expected = torch.zeros(200)
    for op in range(6):
        allowed = inputs.masks["op"][:, op]
        actions = {name: torch.zeros_like(action)[:, None] for name, action in output.actions.items()}
        actions["op"] = torch.where(allowed, op, output.sampled_op)[:, None]
        free = dict.fromkeys(HEAD_NAMES) | {"op": sequence(inputs).masks["op"]}
        evaluation = bundle.evaluate_actions(sequence(inputs)._replace(masks=free), actions, hidden)
        expected += (evaluation.log_probs["op"].exp() * evaluation.values).detach()[:, 0] * allowed
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)


def test_get_value_without_masks_allows_every_op(bundle: LSTMPolicyBundle, make_input: MakeInput) -> None:
    inputs = make_input(5)
    hidden = bundle.initial_hidden(5)
    free = bundle.get_value(inputs.features, hidden, inputs.blueprint_indices)
    explicit = bundle.get_value(inputs.features, hidden, inputs.blueprint_indices, dict.fromkeys(HEAD_NAMES))
    masked = bundle.get_value(inputs.features, hidden, inputs.blueprint_indices, inputs.masks)
    assert torch.equal(free, explicit)
    assert not torch.equal(free, masked)


def test_get_value_says_what_it_is() -> None:
    text = LSTMPolicyBundle.get_value.__doc__
    assert text is not None
    assert text.startswith("INFERENCE-MODE")
    for words in ("not differentiable", "evaluate_actions", "Right::", "Wrong::"):
        assert words in text


# Hidden states


def test_rollouts_return_ordinary_tensors_without_a_graph(bundle: LSTMPolicyBundle, make_input: MakeInput) -> None:
    hidden = bundle.initial_hidden(4)
    assert all(part.is_inference() and (part == 0).all() and part.shape == (1, 4, 128) for part in hidden)
    output = bundle.act(make_input(4), hidden)
    for tensor in (*output.hidden, output.value, *output.log_probs.values(), *output.actions.values()):
        assert not tensor.is_inference()
        assert tensor.grad_fn is None
    gradients(bundle, make_input(4), output.hidden)  # trains without a warning


def test_a_sequence_begins_with_an_empty_memory_unless_it_is_given_one(
    bundle: LSTMPolicyBundle, make_input: MakeInput
) -> None:
    inputs = make_input(3)
    output = bundle.act(inputs, bundle.initial_hidden(3))
    actions = {name: action[:, None] for name, action in output.actions.items()}
    zeros = bundle.network.initial_hidden(3)
    without, given = (bundle.evaluate_actions(sequence(inputs), actions, *hidden) for hidden in ((), (zeros,)))
    assert torch.equal(without.values, given.values)
    assert torch.equal(without.hidden[0], given.hidden[0])
    later = bundle.evaluate_actions(sequence(inputs), actions, output.hidden)
    assert not torch.equal(later.values, without.values)


def test_the_last_hidden_state_may_be_left_out(bundle: LSTMPolicyBundle, make_input: MakeInput) -> None:
    inputs = make_input(3)
    actions = {n: a[:, None] for n, a in bundle.act(inputs, bundle.initial_hidden(3)).actions.items()}
    whole = bundle.evaluate_actions(sequence(inputs), actions)
    log_probs, _, values, hidden = bundle.evaluate_actions(sequence(inputs), actions, final_hidden=False)
    assert hidden is None
    assert whole.hidden is not None
    assert torch.equal(values, whole.values)
    assert all(torch.equal(log_probs[name], whole.log_probs[name]) for name in HEAD_NAMES)


def test_a_hidden_state_is_for_one_row_unless_said_otherwise(bundle: LSTMPolicyBundle) -> None:
    for hidden in (bundle.initial_hidden(), bundle.network.initial_hidden()):
        assert [part.shape for part in hidden] == [(1, 1, 128)] * 2


@pytest.mark.parametrize("frozen", [(True, True), (True, False), (False, True)], ids=["both", "output", "cell"])
def test_inference_hidden_states_warn_and_train_on_rightly(
    bundle: LSTMPolicyBundle, make_input: MakeInput, frozen: tuple[bool, bool]
) -> None:
    """One part of the pair made in inference mode is enough."""
    inputs = make_input(6)
    parts = zip(bundle.initial_hidden(6), frozen, strict=True)
    first, second = (part if keep else part.clone() for part, keep in parts)
    hidden = (first, second)
    with pytest.warns(InferenceHiddenWarning, match=r"tuple\(part\.clone\(\) for part in hidden\)"):
        warned = gradients(bundle, inputs, hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean = gradients(bundle, inputs, (hidden[0].clone(), hidden[1].clone()))
    assert len(warned) == len(clean) > 0
    assert all(torch.equal(a, b) for a, b in zip(warned, clean, strict=True))


def test_strict_raises_on_inference_hidden_states(network: Network, make_input: MakeInput) -> None:
    bundle = LSTMPolicyBundle(network, strict=True)
    with pytest.raises(ValueError, match="inference mode"):
        gradients(bundle, make_input(6), bundle.initial_hidden(6))


def test_pytorch_alone_would_refuse_an_inference_hidden_state(network: Network, make_input: MakeInput) -> None:
    """What the warning saves the user from; if PyTorch ever accepts it, the clone can go."""
    with torch.inference_mode():
        hidden = network.initial_hidden(2)
    assert network.memory is not None
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        network.memory(torch.zeros(2, 3, 128), hidden)[0].sum().backward()
    with pytest.raises(ValueError, match=r"hidden was made in inference mode, .* tensor\.clone"):
        network.get_action(*make_input(2)[:3], hidden)


def test_detach_hidden_cuts_the_graph(bundle: LSTMPolicyBundle, make_input: MakeInput) -> None:
    output = bundle.network.get_action(*make_input(3)[:3])
    assert output.hidden[0].grad_fn is not None
    cut = bundle.detach_hidden(output.hidden)
    for part, before in zip(cut, output.hidden, strict=True):
        assert part.grad_fn is None
        assert not part.requires_grad
        assert torch.equal(part, before)


# Normalisation


def test_features_are_normalised_wherever_they_enter(network: Network, make_input: MakeInput) -> None:
    statistics = RunningMeanStd((126,))
    statistics.update(torch.randn(500, 126) * 3 + 2)
    bundle, plain = LSTMPolicyBundle(network, observation_normalizer=statistics), LSTMPolicyBundle(network)
    raw = make_input(7)
    done = raw._replace(features=statistics.normalize(raw.features))
    hidden = bundle.initial_hidden(7)
    output, expected = bundle.act(raw, hidden, True), plain.act(done, hidden, True)
    assert torch.equal(output.op_values, expected.op_values)
    value = bundle.get_value(raw.features, hidden, raw.blueprint_indices, raw.masks)
    assert torch.equal(value, plain.get_value(done.features, hidden, done.blueprint_indices, done.masks))
    actions = {name: action[:, None] for name, action in output.actions.items()}
    start = (hidden[0].clone(), hidden[1].clone())
    evaluation = bundle.evaluate_actions(sequence(raw), actions, start)
    torch.testing.assert_close(evaluation.values[:, 0], output.value, atol=1e-5, rtol=0)


def test_an_infinite_feature_is_an_error_even_where_the_normaliser_would_clip_it(network: Network) -> None:
    bundle = LSTMPolicyBundle(network, observation_normalizer=RunningMeanStd((126,)))
    features = torch.zeros(2, 126)
    features[1, 5] = torch.inf
    inputs = PolicyInput(features, torch.full((2, 3), -1), dict.fromkeys(HEAD_NAMES))
    with pytest.raises(ValueError, match=r"features must be finite, got inf at index \[1, 5\]"):
        bundle.act(inputs, bundle.initial_hidden(2))


# Files


def same_answers(one: LSTMPolicyBundle, other: LSTMPolicyBundle, inputs: PolicyInput) -> None:
    hidden = one.initial_hidden(len(inputs.features))
    first, second = one.act(inputs, hidden, True), other.act(inputs, hidden, True)
    assert torch.equal(first.op_values, second.op_values)
    assert all(torch.equal(first.log_probs[name], second.log_probs[name]) for name in HEAD_NAMES)


def test_a_saved_policy_answers_the_same(bundle: LSTMPolicyBundle, make_input: MakeInput, tmp_path: Path) -> None:
    assert bundle.save(tmp_path / "new" / "policy") == tmp_path / "new" / "policy" / POLICY_FILE
    loaded = LSTMPolicyBundle.load(tmp_path / "new" / "policy", heads=HEADS)
    assert loaded.heads == HEADS
    assert loaded.network.config == bundle.network.config
    same_answers(bundle, loaded, make_input(9))
    bundle.save(tmp_path / "new" / "policy")  # replacing is fine
    assert [path.name for path in (tmp_path / "new" / "policy").iterdir()] == [POLICY_FILE]


def test_statistics_are_saved_with_the_policy(network: Network, make_input: MakeInput, tmp_path: Path) -> None:
    statistics = RunningMeanStd((126,))
    statistics.update(torch.randn(50, 126) + 1)
    bundle = LSTMPolicyBundle(network, observation_normalizer=statistics)
    bundle.save(tmp_path)
    restored = RunningMeanStd((126,))
    same_answers(bundle, LSTMPolicyBundle.load(tmp_path, observation_normalizer=restored), make_input(4))
    assert restored.count == 50
    with pytest.raises(ValueError, match="holds its observation statistics, but no observation_normalizer was given"):
        LSTMPolicyBundle.load(tmp_path)
    with pytest.raises(ValueError, match=r"statistics in .* do not fit the observation_normalizer given"):
        LSTMPolicyBundle.load(tmp_path, observation_normalizer=RunningMeanStd((4,)))
    LSTMPolicyBundle(network).save(tmp_path)
    with pytest.raises(ValueError, match="holds no observation statistics, but one observation_normalizer was given"):
        LSTMPolicyBundle.load(tmp_path, observation_normalizer=RunningMeanStd((126,)))


def test_a_policy_of_other_heads_is_refused(bundle: LSTMPolicyBundle, tmp_path: Path) -> None:
    bundle.save(tmp_path)
    other = HeadTable([Head("move", 3)])
    with pytest.raises(ValueError, match=r"another heads table: expected move\(3\), got op\(6\), slot\(slots\)"):
        LSTMPolicyBundle.load(tmp_path, heads=other)


@pytest.fixture
def saved(tmp_path: Path) -> bytes:
    """The bytes of a small saved policy."""
    network = FactoredRecurrentActorCritic(
        state_dim=3, num_slots=0, heads=HeadTable([Head("move", 2)]), hidden_dim=4, head_dim=2
    )
    return LSTMPolicyBundle(network).save(tmp_path / "saved").read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(saved: bytes, tmp_path: Path, share: float) -> None:
    (tmp_path / POLICY_FILE).write_bytes(saved[: int(len(saved) * share)])
    with pytest.raises(ValueError, match=f"{POLICY_FILE}' is truncated or not a safetensors file"):
        LSTMPolicyBundle.load(tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.dictionaries(st.sampled_from(["move", "speed", "jump"]), st.integers(1, 3), min_size=1))
def test_only_the_table_it_was_saved_with_is_taken(saved: bytes, tmp_path: Path, sizes: dict[str, int]) -> None:
    (tmp_path / POLICY_FILE).write_bytes(saved)
    heads = HeadTable([Head(name, size) for name, size in sizes.items()])
    if sizes == {"move": 2}:
        assert LSTMPolicyBundle.load(tmp_path, heads=heads).heads == heads
    else:
        expected = ", ".join(rf"{name}\({size}\)" for name, size in sizes.items())
        with pytest.raises(ValueError, match=rf"another heads table: expected {expected}, got move\(2\)"):
            LSTMPolicyBundle.load(tmp_path, heads=heads)


def test_files_that_are_not_policies_are_refused(bundle: LSTMPolicyBundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a saved policy at .* found none"):
        LSTMPolicyBundle.load(tmp_path)
    path = bundle.save(tmp_path)
    config = bundle.network.config.to_json()
    tensors, description = load_file(path), {"network": config, "op_share": 1.0}
    first = config["heads"][0]

    def refused(says: str) -> None:
        with pytest.raises(ValueError, match=says):
            LSTMPolicyBundle.load(tmp_path)

    save_file(tensors, path)
    refused("is not a saved policy")
    save_file(tensors, path, metadata={"esper_policy": "{"})
    refused("is not JSON")
    save_file(tensors, path, metadata={"esper_policy": "[]"})
    refused("field 'format': expected 5, got None")
    Format("esper_policy", 4, "an older policy").write(path, description, tensors)
    refused("field 'format': expected 5, got 4")
    for wrong, says in (
        ({}, "field 'network' is missing"),
        ({"network": config}, "field 'op_share' is missing"),
        ({**description, "op_share": "all"}, "field 'op_share': expected float, got 'all'"),
        ({**description, "op_share": 0}, r"expected op_share in \(0, 1\], got 0"),
        ({**description, "novel": 1}, "field 'novel' is unknown"),
        ({**description, "network": []}, "field 'network': expected the fields of a NetworkConfig"),
        ({**description, "network": {**config, "novel": 1}}, "field 'network.novel' is unknown"),
        ({**description, "network": {**config, "heads": []}}, "field 'network.heads': expected at least one head"),
        ({**description, "network": {**config, "heads": 5}}, "field 'network.heads'"),
        ({**description, "network": {**config, "heads": [{**first, "num_choices": "6"}]}}, "field 'network.heads'"),
        ({**description, "network": {**config, "hidden_dim": "64"}}, "field 'network.hidden_dim': expected int"),
        ({**description, "network": {**config, "hidden_dim": -1}}, "field 'network': hidden_dim: expected a size"),
        ({**description, "network": {**config, "num_blueprints": -5}}, "field 'network' describes no network"),
        ({**description, "network": {**config, "hidden_dim": 64}}, "do not fit its description"),
        ({**description, "network": {**config, "memory": "gru"}}, "do not fit its description"),
        ({**description, "network": {**config, "memory_layers": 2**40}}, "memory_layers: expected 1 to 64"),
    ):
        POLICY.write(path, wrong, tensors)
        refused(says)
    POLICY.write(path, description, {name: x for name, x in tensors.items() if "critic" not in name})
    refused("do not fit its description: expected 'critic")
    POLICY.write(path, description, {**tensors, "network.critic.bias": tensors["network.critic.bias"] * math.nan})
    refused("expected finite weights, got NaN or infinity in 'critic.bias'")


@pytest.mark.parametrize("size", ["hidden_dim", "head_dim", "slot_dim", "num_blueprints", "state_dim"])
@pytest.mark.parametrize("value", [2_000, 2**40, 2**70])
def test_absurd_sizes_are_refused_before_memory_is_taken(
    bundle: LSTMPolicyBundle, tmp_path: Path, size: str, value: int
) -> None:
    path = bundle.save(tmp_path)
    config = bundle.network.config.to_json() | {size: value}
    POLICY.write(path, {"network": config, "op_share": 1.0}, load_file(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"describes no network|do not fit its description"):
        LSTMPolicyBundle.load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 60_000  # kilobytes


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_how_it_decides_is_saved_with_it(bundle: LSTMPolicyBundle, tmp_path: Path, share: float) -> None:
    bundle.op_share = share
    bundle.save(tmp_path)
    assert LSTMPolicyBundle.load(tmp_path).op_share == share


def test_an_interrupted_save_leaves_the_old_policy(
    bundle: LSTMPolicyBundle, make_input: MakeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle.save(tmp_path)
    before = LSTMPolicyBundle.load(tmp_path)

    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_file", interrupted)
    with torch.no_grad():
        bundle.network.critic.weight.zero_()
    with pytest.raises(KeyboardInterrupt):
        bundle.save(tmp_path)
    same_answers(before, LSTMPolicyBundle.load(tmp_path), make_input(2))
    assert [path.name for path in tmp_path.iterdir()] == [POLICY_FILE]


@pytest.mark.parametrize(
    "statement",
    [
        "from esper.tamiyo.networks import FactoredRecurrentActorCritic",
        pytest.param("from esper.tamiyo.networks.action_tree import ActionTree", marks=pytest.mark.slow),
        pytest.param("from esper.tamiyo import *", marks=pytest.mark.slow),
        "from esper.simic import *",
        pytest.param("from esper.tamiyo.policy import MaskedCategorical", marks=pytest.mark.slow),
        pytest.param("from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle", marks=pytest.mark.slow),
        pytest.param("from esper.simic.control.normalization import RunningMeanStd", marks=pytest.mark.slow),
        "from esper.actions import HEAD_NAMES",
        pytest.param("from esper.simic.rollout_buffer import RolloutBuffer", marks=pytest.mark.slow),
        pytest.param("import esper.simic.ppo", marks=pytest.mark.slow),
        pytest.param("import esper.simic.training.vectorized", marks=pytest.mark.slow),
    ],
)
def test_every_import_path_works_first(statement: str) -> None:
    subprocess.run([sys.executable, "-c", statement], check=True)
