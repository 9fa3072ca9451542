"""Tamiyo as a policy: the trained network behind the same two calls as every other controller."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from esper.tamiyo.policy.base import Actions, Observation
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, PolicyInput


class LearnedPolicy:
    """Steers B runs with a trained bundle and keeps their hidden states.

    Args:
        bundle: The trained policy.
        deterministic: Take the most probable choice of every head instead of drawing one.
        shuffle_observations: Give every run the features of another run (a permutation drawn at each decision, masks
            kept in place). An ablation: what is left of the policy when what it sees is not its own run.
    """

    def __init__(
        self, bundle: LSTMPolicyBundle, *, deterministic: bool = True, shuffle_observations: bool = False
    ) -> None:
        self.bundle = bundle
        self.deterministic = deterministic
        self.shuffle_observations = shuffle_observations
        self._hidden: Any = None

    def reset(self, num_runs: int, seed: int) -> None:
        """Begin ``num_runs`` new runs with empty memory; ``seed`` drives the draws."""
        self._hidden = self.bundle.initial_hidden(num_runs)
        self._generator = torch.Generator().manual_seed(seed)
        self._rng = np.random.default_rng(seed)

    def act(self, observation: Observation) -> Actions:
        """One decision for each run."""
        features = np.asarray(observation["features"], dtype=np.float32)
        if self.shuffle_observations:
            features = features[self._rng.permutation(len(features))]
        inputs = PolicyInput(
            torch.as_tensor(features),
            torch.as_tensor(np.asarray(observation["blueprints"], dtype=np.int64)),
            {h: torch.as_tensor(np.asarray(m, dtype=bool)) for h, m in observation["action_mask"].items()},
        )
        out = self.bundle.act(inputs, self._hidden, self.deterministic, self._generator)
        self._hidden = out.hidden
        return {name: choice.numpy() for name, choice in out.actions.items()}
