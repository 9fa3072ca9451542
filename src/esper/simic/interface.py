"""A trained policy in the terms of its environment: observations as they are shown, actions as they are taken.

Legend: B rows, H size of the core.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from esper.heads import HeadTable
from esper.simic.export import export_policy
from esper.simic.spaces import MASK, EnvironmentAdapter
from esper.simic.spaces.plain import from_plain, to_plain
from esper.simic.spaces.trees import leaves, values
from esper.simic.training.stepping import emptied
from esper.tamiyo.networks import FactoredRecurrentActorCritic
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

Memory = tuple[np.ndarray, np.ndarray]
"""Pair ``[num_layers, B, H]``."""


class SpacesInterface:
    """What a policy has to know of its environment to be used without one.

    Args:
        observation_space: Of one environment.
        action_space: Of one environment.
        heads: The heads of the policy.
        masks: Shape of the mask of one row, for every head that has had one.
        own_encoders: Parts of the observation that modules of the user's own encode.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        heads: HeadTable,
        masks: Mapping[str, tuple[int, ...]],
        own_encoders: tuple[str, ...] = (),
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.heads, self.masks, self.own_encoders = heads, dict(masks), own_encoders
        self._adapters: dict[tuple[int, bool, torch.device], EnvironmentAdapter] = {}

    def to_json(self) -> dict[str, Any]:
        """Spaces and masks as plain data; heads and encoders are the network's."""
        return {
            "observation_space": to_plain(self.observation_space),
            "action_space": to_plain(self.action_space),
            "masks": {head: list(shape) for head, shape in self.masks.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], network: FactoredRecurrentActorCritic) -> SpacesInterface:
        """The interface that :meth:`to_json` wrote, to a network that has been read.

        Raises:
            ValueError: For what it never writes.
        """
        try:
            masks = {str(head): tuple(map(int, shape)) for head, shape in data["masks"].items()}
            shown, taken = from_plain(data["observation_space"]), from_plain(data["action_space"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("field 'interface' does not describe an environment") from error
        return cls(shown, taken, network.heads, masks, tuple(network.part_encoder.own))

    # ------------------------------------------------------------------ using the policy

    def adapter(self, rows: int, device: torch.device, *, masked: bool = False) -> EnvironmentAdapter:
        """Between ``rows`` environments and the policy; ``masked``, for masks that come beside the observation."""
        key = (rows, masked, device)
        if key not in self._adapters:
            described = _Described(self.observation_space, self.action_space, rows)
            self._adapters[key] = EnvironmentAdapter(described, self.heads, device, self.own_encoders)
        return self._adapters[key]

    def predict(
        self,
        policy: LSTMPolicyBundle,
        observation: Any,
        state: Memory | None,
        episode_start: Any,
        deterministic: bool,
        action_masks: Any,
    ) -> tuple[Any, Memory]:
        """See :meth:`LSTMPolicyBundle.predict`."""
        rows = self._rows(observation)
        single = rows is None
        if single:
            observation, action_masks = _batched(observation), None if action_masks is None else _batched(action_masks)
        rows = rows or 1
        device = policy.network.encoder.weight.device
        adapter = self.adapter(rows, device, masked=action_masks is not None)
        inputs = adapter.encode(observation, {} if action_masks is None else {MASK: action_masks})
        hidden = policy.initial_hidden(rows)
        if state is not None:
            hidden = (torch.as_tensor(state[0], device=device), torch.as_tensor(state[1], device=device))
            if episode_start is not None:
                hidden = emptied(hidden, np.broadcast_to(np.asarray(episode_start, bool), rows).copy())
        output = policy.act(inputs, hidden, deterministic)
        actions = adapter.decode(output.actions)
        memory = (output.hidden[0].cpu().numpy(), output.hidden[1].cpu().numpy())
        return (_first(actions) if single else actions), memory

    def _rows(self, observation: Any) -> int | None:
        """How many rows an observation has; ``None``: it is that of one environment."""
        expected = {path: space.shape for path, space in leaves(self.observation_space, "").items()}
        shown = values(observation)
        path = next((path for path in expected if path in shown and not path.startswith(MASK)), None)
        if path is None:
            raise ValueError(f"expected an observation of {self.observation_space}, got {type(observation).__name__}")
        shape, got = expected[path], np.shape(shown[path])
        if got == shape:
            return None
        if shape is not None and len(got) == len(shape) + 1 and got[1:] == shape and got[0] > 0:
            return got[0]
        raise ValueError(
            f"observation '{path or 'observation'}': expected shape {shape} of one environment, or (B, ...) of "
            f"several, got {got}"
        )

    def export(self, policy: LSTMPolicyBundle, path: Path) -> Path:
        """See :func:`esper.simic.export.export_policy`."""
        adapter = self.adapter(2, torch.device("cpu"))
        return export_policy(policy, adapter.leaves, self.action_space, self.masks, path)


class _Described(VectorEnv):
    """The spaces of an environment that is not here."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, rows: int) -> None:
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.num_envs = rows


def _batched(tree: Any) -> Any:
    """A batch of one, of nested mappings and tuples of arrays."""
    if isinstance(tree, Mapping):
        return {key: _batched(value) for key, value in tree.items()}
    return tuple(map(_batched, tree)) if isinstance(tree, tuple) else np.asarray(tree)[None]


def _first(tree: Any) -> Any:
    """The first row of a batch of actions."""
    if isinstance(tree, Mapping):
        return {key: _first(value) for key, value in tree.items()}
    return tuple(map(_first, tree)) if isinstance(tree, tuple) else tree[0]
