"""An exported policy plays whole episodes in a process that cannot import Esper, and does the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from esper.simic import NetworkOptions, TrainConfig, load_bundle, train
from kinds import KINDS
from simic.everything import Everything
from simic.test_predict import decided, flat, masks_of


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


RUN = """
import sys
sys.modules["esper"] = None  # from here on `import esper` fails
import numpy as np, torch
path, steps, outputs = sys.argv[1:]
steps = torch.load(steps, weights_only=True)
if path.endswith(".pt2"):
    run = torch.export.load(path).module()
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    def run(observation, masks, state):
        given = observation | {f"mask/{head}": mask for head, mask in masks.items()} | {"h": state[0], "c": state[1]}
        names = [output.name for output in session.get_outputs()]
        found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        found = {name: torch.from_numpy(array) for name, array in zip(names, found, strict=True)}
        return found, (found.pop("next_h"), found.pop("next_c"))
played = []
for step in steps:
    if step["start"]:
        state = (torch.zeros(1, 1, 16), torch.zeros(1, 1, 16))
    actions, state = run(step["observation"], step["masks"], state)
    played.append({"actions": actions, "state": state})
torch.save(played, outputs)
"""


def named(tree: Any, path: str) -> dict[str, torch.Tensor]:
    """Leaves by path, each as a batch of one."""
    if not isinstance(tree, dict | tuple):
        return {path: torch.as_tensor(np.asarray(tree))[None]}
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, inner in entries for k, v in named(inner, f"{path}/{key}" if path else str(key)).items()}


def episodes(env_id: str, policy, steps: int = 60) -> tuple[list[dict], list[Any], list[Any]]:
    """What was shown at every step, and what the policy did and remembered."""
    env, given, actions, states = gym.make(env_id), [], [], []
    (shown, info), state, start = env.reset(seed=0), None, True
    for _ in range(steps):
        action, state = policy.predict(shown, state, start, action_masks=masks_of(info))
        parts = dict(shown) if isinstance(shown, dict) else {"observation": shown}
        masks = parts.pop("action_mask", masks_of(info))
        masks = masks if isinstance(masks, dict) else {"action": masks} if masks is not None else {}
        allowed = {head: torch.as_tensor(mask).bool()[None] for head, mask in masks.items()}
        given.append({"start": start, "observation": named(parts, ""), "masks": allowed})
        actions.append(action)
        states.append(state)
        shown, _, terminated, truncated, info = env.step(action)
        start = terminated or truncated
        if start:
            shown, info = env.reset()
    return given, actions, states


@pytest.mark.parametrize(
    ("env_id", "suffix"),
    [
        pytest.param("Taxi-v4", "pt2", marks=pytest.mark.slow),
        pytest.param("Everything-v0", "pt2", marks=pytest.mark.slow),
        ("Everything-v0", "onnx"),
    ],
)
def test_an_export_plays_whole_episodes_without_esper(env_id: str, suffix: str, tmp_path: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    policy = decided(env_id)
    given, actions, states = episodes(env_id, policy)
    assert sum(step["start"] for step in given) > 1 or env_id == "Taxi-v4"
    path = policy.export(tmp_path / f"policy.{suffix}")
    torch.save(given, tmp_path / "in.pt")
    command = [sys.executable, "-c", RUN, str(path), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True, capture_output=True, text=True)
    for played, action, state in zip(torch.load(tmp_path / "out.pt", weights_only=True), actions, states, strict=True):
        expected = named(action, "" if isinstance(action, dict) else "action")
        assert sorted(played["actions"]) == sorted(expected)
        for name, leaf in expected.items():
            assert played["actions"][name].dtype == leaf.dtype
            np.testing.assert_allclose(played["actions"][name], leaf, atol=1e-5)
        for ours, theirs in zip(state, played["state"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert len({str(flat(action)) for action in actions}) > 1


def test_another_suffix_is_refused_and_the_policy_is_left_as_it_was(tmp_path: Path) -> None:
    policy = decided("Everything-v0")
    with pytest.raises(ValueError, match=r"ends in \.pt2 or \.onnx, got 'policy.pth'"):
        policy.export(tmp_path / "policy.pth")
    assert policy.network.check_values
    assert all(parameter.requires_grad for parameter in policy.network.parameters())
    assert set(policy.interface.masks) == set(Everything().observation_space["action_mask"])


@pytest.mark.parametrize("suffix", ["pt2", slow("onnx")])
@pytest.mark.parametrize(
    "kind", [kind if kind.startswith("gru_of_2_and_a_critic_with_its") else slow(kind) for kind in KINDS]
)
def test_every_kind_of_memory_is_saved_exported_and_played_alike(kind: str, suffix: str, tmp_path: Path) -> None:
    """Through an end of an episode; the state goes in and out as ``predict`` has it."""
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    network = NetworkOptions(hidden_dim=16, head_dim=8, **KINDS[kind])
    config = TrainConfig(updates=1, num_envs=2, num_steps=8, network=network)
    policy = train("CartPole-v1", config=config, run_dir=tmp_path / "run").policy
    torch.nn.init.normal_(policy.network.tree.output.weight)
    policy.save(tmp_path / "run" / "checkpoint")
    again = load_bundle(tmp_path / "run")
    play = player(policy.export(tmp_path / f"policy.{suffix}"))
    state = before = kept = None
    empty = tuple(part.numpy() for part in policy.network.initial_hidden(2))
    for step, shown in enumerate(np.random.default_rng(0).uniform(-0.4, 0.4, (8, 2, 4)).astype(np.float32)):
        starts = np.array([step == 5, False])
        actions, state = policy.predict(shown, state, starts)
        assert np.array_equal(again.predict(shown, before, starts)[0], actions)
        given = empty if before is None else tuple(np.where(starts[:, None], 0, part) for part in before)
        exported, kept = play(shown, given)
        assert np.array_equal(exported, actions)
        for ours, theirs in zip(state, kept, strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-5)
        before = state


def player(path: Path) -> Callable[..., tuple[np.ndarray, list[np.ndarray]]]:
    """Plays an exported policy: the observation and the state to the action and the next state."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()

        def play(shown: np.ndarray, state: tuple[np.ndarray, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
            given = tuple(torch.from_numpy(np.ascontiguousarray(part, np.float32)) for part in state)
            actions, after = program({"observation": torch.from_numpy(shown)}, {}, given)
            return actions["action"].numpy(), [part.numpy() for part in after]

        return play
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def play_session(shown: np.ndarray, state: tuple[np.ndarray, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
        given = {"observation": shown, "h": state[0].astype(np.float32), "c": state[1].astype(np.float32)}
        action, *after = session.run(None, {name: given[name] for name in names})
        return action, after

    return play_session
