"""Tamiyo as a policy: the trained network behind the same two calls as every other controller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from esper.actions import ALL_BLUEPRINTS
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
        masks = {h: np.asarray(m, dtype=bool) for h, m in observation["action_mask"].items()}
        inputs = PolicyInput(
            features=torch.as_tensor(features),
            blueprint_indices=torch.as_tensor(self._known_blueprints(observation)),
            masks={h: torch.as_tensor(m) for h, m in self._known_choices(masks).items()},
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
                    for head in self.bundle.heads
                    if self.bundle.heads.is_used(head.name, {"op": taken})
                },
                op_values={op.name: float(out.op_values[row, op]) for op in Op if allowed[row, op]},
            )
            for row, taken in enumerate(out.sampled_op.tolist())
        ]

    @property
    def _num_blueprints(self) -> int:
        """How many the policy was trained with; those that have been registered since come after them."""
        return self.bundle.heads.named("blueprint").num_choices

    def _known_blueprints(self, observation: Observation) -> np.ndarray:
        indices = np.asarray(observation["blueprints"], dtype=np.int64)
        if (indices >= self._num_blueprints).any():
            unknown = sorted({ALL_BLUEPRINTS[i] for i in indices[indices >= self._num_blueprints]})
            raise ValueError(
                f"a slot holds {' and '.join(unknown)}, which this policy was trained without; let a rule go on, or "
                "train a policy where it is registered"
            )
        return indices

    def _known_choices(self, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The masks without blueprints that the policy was trained without, and without slots that take no other."""
        known = masks["blueprint"][..., : self._num_blueprints]
        if known.shape == masks["blueprint"].shape:
            return masks
        op, slot = masks["op"].copy(), masks["slot"].copy()
        slot[:, Op.GERMINATE] &= known.any(axis=-1)
        op[:, Op.GERMINATE] &= slot[:, Op.GERMINATE].any(axis=-1)
        return {**masks, "op": op, "slot": slot, "blueprint": known}

    def _prospects(self, observation: Observation) -> dict[str, torch.Tensor]:
        """What describes the blueprints, where the policy reads it."""
        if self.bundle.network.prospects is None or PROSPECTS not in observation:
            return {}
        described = np.asarray(observation[PROSPECTS], dtype=np.float32)[:, :, : self._num_blueprints]
        return {PROSPECTS: torch.as_tensor(described)}

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
