"""Tamiyo as a policy: the trained network behind the same two calls as every other controller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from esper.actions import HEADS
from esper.auditions import Auditions
from esper.lifecycle import Op
from esper.observation import RUN_SIZE, SLOT_SIZE
from esper.tamiyo.networks.factored_lstm import ActionOutput
from esper.tamiyo.networks.prospects import PROSPECTS
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, PolicyInput
from esper.tamiyo.policy.protocol import Actions, Observation, Reason


class LearnedPolicy:
    """Steers B runs with a trained bundle and keeps their hidden states.

    Args:
        bundle: The trained policy.
        deterministic: Deterministic inference instead of drawing: the op of the greatest Q among the probable ones
            (which those are says the bundle's ``op_share``), and the likeliest choice of every other head. The
            likeliest op at every decision is not what the policy does: where waiting is only likelier than not each
            time, it would wait for ever.
        shuffle_observations: Give every run the features of another run (a permutation drawn at each decision, masks
            kept in place). An ablation: what is left of the policy when what it sees is not its own run.
        foreign_observations: Features of finished runs, each ``[T, 24 + 34·S]``; at each decision every run is shown
            those of one of them, drawn anew, at the same decision (masks kept in place). A run with another number of
            slots lends its slots in turn. The same ablation across tasks.
    """

    def __init__(
        self,
        bundle: LSTMPolicyBundle,
        *,
        deterministic: bool = True,
        shuffle_observations: bool = False,
        foreign_observations: Sequence[np.ndarray] = (),
    ) -> None:
        self.bundle = bundle
        self.deterministic = deterministic
        self.shuffle_observations = shuffle_observations
        self.foreign_observations = foreign_observations
        self._hidden: Any = None
        self._latest: tuple[PolicyInput, Any, ActionOutput, tuple[str, ...]] | None = None

    @property
    def auditions(self) -> Auditions | None:
        """What auditions in empty slots where this policy decides."""
        return self.bundle.auditions

    def reset(self, num_runs: int, seed: int) -> None:
        """Begin ``num_runs`` new runs with empty memory; ``seed`` drives the draws."""
        self._hidden = self.bundle.initial_hidden(num_runs)
        self._latest = None
        self._generator = torch.Generator().manual_seed(seed)
        self._rng = np.random.default_rng(seed)
        self._decision = 0

    def act(self, observation: Observation) -> Actions:
        """One decision for each run."""
        features = np.asarray(observation["features"], dtype=np.float32)
        if self.shuffle_observations:
            features = features[self._rng.permutation(len(features))]
        if self.foreign_observations:
            features = self._foreign(len(features), num_slots=np.shape(observation["blueprints"])[1])
        inputs = PolicyInput(
            features=torch.as_tensor(features),
            blueprint_indices=torch.as_tensor(np.asarray(observation["blueprints"], dtype=np.int64)),
            masks={h: torch.as_tensor(np.asarray(m, dtype=bool)) for h, m in observation["action_mask"].items()},
            parts=self._prospects(observation),
        )
        out = self.bundle.act(inputs, self._hidden, self.deterministic, self._generator)
        self._latest = (inputs, self._hidden, out, tuple(observation.get("slot_names", ())))
        self._hidden = out.hidden
        self._decision += 1
        return {name: choice.numpy() for name, choice in out.actions.items()}

    @property
    def reasons(self) -> list[Reason]:
        """Why the latest decisions were taken: probabilities of all choices, and Q of the allowed ops; one a run."""
        if self._latest is None:
            return []
        inputs, hidden, out, slot_names = self._latest
        found = self.bundle.probabilities(inputs, hidden, out.actions)
        allowed = inputs.masks["op"]
        assert allowed is not None
        return [
            Reason(
                probabilities={
                    head.name: _by_choice(found[head.name][row], head.choices or slot_names)
                    for head in HEADS
                    if HEADS.is_used(head.name, {"op": taken})
                },
                op_values={op.name: float(out.op_values[row, op]) for op in Op if allowed[row, op]},
            )
            for row, taken in enumerate(out.sampled_op.tolist())
        ]

    def _prospects(self, observation: Observation) -> dict[str, torch.Tensor]:
        """What describes the blueprints, where the policy reads it."""
        if self.bundle.network.prospects is None or PROSPECTS not in observation:
            return {}
        return {PROSPECTS: torch.as_tensor(np.asarray(observation[PROSPECTS], dtype=np.float32))}

    def _foreign(self, num_runs: int, num_slots: int) -> np.ndarray:
        """What other runs showed at this decision, [num_runs, 24 + 34·num_slots]."""
        shown = []
        for i in self._rng.integers(len(self.foreign_observations), size=num_runs):
            features = self.foreign_observations[i][self._decision]
            slots = np.resize(features[RUN_SIZE:], num_slots * SLOT_SIZE)
            shown.append(np.concatenate([features[:RUN_SIZE], slots]))
        return np.stack(shown).astype(np.float32)


def _by_choice(probabilities: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """The choices that are possible at all, each with its probability; without names by their index."""
    found = enumerate(probabilities.tolist())
    return {names[i] if names else str(i): p for i, p in found if p > 0}
