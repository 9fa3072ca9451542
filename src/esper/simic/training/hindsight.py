"""A rollout judged once more, under another objective.

Legend: K environments.

Sometimes part of an objective changes neither what happens nor what is allowed, only what it is worth: a price, a goal.
Then an episode played under one price also tells what it would have been worth under another (Andrychowicz et al. 2017,
Hindsight Experience Replay, https://arxiv.org/abs/1707.01495), and because everything else is equal, the difference is
due to the price alone. An environment offers this by :data:`OTHER_OBJECTIVE` in its infos.

The actions were drawn by the policy that saw the first objective. What it would have done under the other is known, so
the difference is corrected for, see :mod:`esper.simic.advantages`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from esper.simic.rollout_buffer import RolloutBuffer, Transition
from esper.simic.spaces import EnvironmentAdapter
from esper.simic.training.stepping import emptied, final_values, value
from esper.tamiyo.networks.prospects import PROSPECTS
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, PolicyInput

OTHER_OBJECTIVE = "other_objective"
"""Key in ``infos``, at every reset and step, of a mapping with ``features`` (the encoded observation under the other
objective, float32 [K, D]; after same-step autoreset also in ``infos["final_info"]``), ``prospects`` where the
observation has them, and ``rewards`` (of the step, [K])."""


class Seen(NamedTuple):
    """What depends on the objective of what is seen."""

    features: Tensor
    """[K, D]"""
    parts: dict[str, Tensor]
    """Those of the parts that do, [K, ...]."""

    def instead(self, inputs: PolicyInput, rows: np.ndarray | slice = slice(None)) -> PolicyInput:
        """``inputs`` of these rows as they look under this objective."""
        parts = {name: x[rows] for name, x in self.parts.items()}
        return inputs._replace(features=self.features[rows], parts={**inputs.parts, **parts})

    def without(self, rows: Tensor | None) -> Seen:
        """The same with zeros in the rows [K] that are True."""
        if rows is None:
            return self
        parts = {name: x.masked_fill(rows.view(-1, *(1,) * (x.dim() - 1)), 0.0) for name, x in self.parts.items()}
        return Seen(self.features.masked_fill(rows[:, None], 0.0), parts)


class Hindsight:
    """Follows a collector, with a memory of its own, and fills its ``buffer`` with what it makes of the same steps.

    Args:
        adapter: Between the environments and the policy.
        infos: Of the reset.
        policy: The policy that will act.
    """

    def __init__(self, adapter: EnvironmentAdapter, infos: Mapping[str, Any], policy: LSTMPolicyBundle) -> None:
        self.adapter = adapter
        self.seen = self._seen(infos)
        self.hidden = policy.network.initial_hidden(adapter.num_envs)

    def begin(self, num_steps: int) -> None:
        """A new :attr:`buffer`, for T steps."""
        self.buffer = RolloutBuffer(num_steps, self.adapter.num_envs, self.adapter.heads)

    def add(
        self,
        policy: LSTMPolicyBundle,
        seen: Transition,
        infos: Mapping[str, Any],
        *,
        begins: np.ndarray,
        ignore: np.ndarray | None,
    ) -> None:
        """Judge a step that has been taken.

        Args:
            policy: The policy that took it.
            seen: The step as it was.
            infos: What the environments said after it.
            begins: [K] bool, whether the next step is the first of an episode.
            ignore: [K] bool, whose new observation means nothing; ``None`` for none.
        """
        following = self._seen(infos)
        inputs = self.seen.instead(seen.inputs)
        core, hidden = policy.core(inputs, self.hidden)
        values = None
        if seen.final_values is not None:
            cut, final = seen.truncated & ~seen.terminated, self._seen(infos["final_info"])
            values = final_values(policy, self.adapter, hidden, cut, infos, change=final.instead)
        self.buffer.add(
            replace(
                seen,
                inputs=inputs,
                hidden=self.hidden,
                core=core,
                rewards=np.where(seen.valid, np.asarray(infos[OTHER_OBJECTIVE]["rewards"], dtype=np.float32), 0.0),
                final_values=values,
            )
        )
        self.seen = following.without(None if ignore is None else self._tensor(ignore))
        self.hidden = emptied(hidden, begins)

    def finish(
        self,
        policy: LSTMPolicyBundle,
        following: PolicyInput,
        seen: RolloutBuffer,
        *,
        gamma: float,
        gae_lambda: float,
        reward_scale: float,
        paired: bool,
    ) -> None:
        """Judge what was followed and compute the advantages, as :class:`RolloutBuffer` does.

        ``following`` is what the last step led to, and ``seen`` are the steps as they were, judged.
        """
        self.buffer.close(policy.judge)
        self.buffer.weigh((self.buffer["log_probs"].sum(-1) - seen["log_probs"].sum(-1)).exp())
        last_values = value(policy, self.seen.instead(following), self.hidden)
        self.buffer.finish(last_values, gamma, gae_lambda, reward_scale, paired=paired)

    def _seen(self, infos: Mapping[str, Any]) -> Seen:
        if OTHER_OBJECTIVE not in infos:
            raise ValueError(
                f"the environment offered another objective at its first reset, so infos['{OTHER_OBJECTIVE}'] is "
                "expected after every reset and step, and in infos['final_info']; got none"
            )
        other = infos[OTHER_OBJECTIVE]
        parts = {PROSPECTS: other[PROSPECTS]} if self.adapter.described_head is not None else {}
        return Seen(self._numbers(other["features"]), {name: self._numbers(x) for name, x in parts.items()})

    def _numbers(self, array: Any) -> Tensor:
        return self._tensor(np.array(array, dtype=np.float32))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.adapter.device)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """What to go on from, as a copy."""
        parts = {name: part.clone() for name, part in self.seen.parts.items()}
        return {
            "features": self.seen.features.clone(),
            "parts": parts,
            "hidden": [part.clone() for part in self.hidden],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        device = self.adapter.device
        self.seen = Seen(state["features"].to(device), {name: part.to(device) for name, part in state["parts"].items()})
        self.hidden = (state["hidden"][0].to(self.adapter.device), state["hidden"][1].to(self.adapter.device))
