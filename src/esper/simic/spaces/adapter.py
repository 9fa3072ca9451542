"""What a vector environment shows, as a policy's input; what a policy draws, as the environment's actions.

Legend: K environments, D features, S slots, n choices of a head.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor

from esper.heads import HeadTable
from esper.simic.spaces.actions import ActionDecoder, declared_heads
from esper.simic.spaces.masks import IN_INFOS, MASK, MaskReader
from esper.simic.spaces.observations import read_leaves
from esper.simic.spaces.trees import TREES, leaves, rows_of, values
from esper.tamiyo.networks.prospects import PROSPECTS
from esper.tamiyo.policy.lstm_bundle import PolicyInput

SLOTS = "blueprints"
"""Key of the blueprint indices in a Dict observation."""


def autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    """How ``envs`` begins new episodes.

    Raises:
        ValueError: When it does not say, or does not do it by itself.
    """
    mode = envs.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        raise ValueError(
            f"expected envs.metadata['autoreset_mode'] to be AutoresetMode.NEXT_STEP or SAME_STEP, got {mode!r}; "
            "rollouts need environments that begin their next episode by themselves, and must know on which step"
        )
    return AutoresetMode(mode)


class EnvironmentAdapter:
    """What a vector environment shows, as :class:`PolicyInput`; what a policy draws, as the environment's actions.

    The leaves of the observation, but for the mask and the slots, are features (flattened and joined in order; a few
    choices one-hot) or parts with an encoder, see :data:`OBSERVATION_SPACES`. Masks are taken from wherever they are,
    see :mod:`esper.simic.spaces.masks`. The action space gives the heads, see :data:`ACTION_SPACES`.

    Args:
        envs: Any ``gymnasium.vector.VectorEnv``.
        heads: The heads, in the order they are drawn. ``None``: what the environment declares, or else what its action
            space gives.
        device: Where the policy's tensors live.
        own_encoders: Names of the parts of the observation that modules of the user's own encode: paths like
            "camera" or "robot/camera", and "observation" for an observation without parts.

    Raises:
        ValueError: For spaces that are not supported, or heads that do not fit the action space.
    """

    def __init__(
        self,
        envs: VectorEnv,
        heads: HeadTable | None = None,
        device: torch.device | str = "cpu",
        own_encoders: Collection[str] = (),
    ) -> None:
        self.num_envs = envs.num_envs
        self.device = torch.device(device)
        self._observation_space = envs.single_observation_space
        self.heads = declared_heads(envs) if heads is None else heads
        self.num_slots = self._find_slots()
        self.sizes = self.heads.sizes(self.num_slots)
        self.decode = ActionDecoder(envs.single_action_space, self.heads, self.sizes)
        """The batch of actions that ``envs.step`` takes, from what was drawn, {head: [K] or [K, n]}."""
        self._masks = MaskReader(envs, self.heads, self.num_slots)
        special = (SLOTS, PROSPECTS) if self.num_slots else ()
        self.described_head, self.prospect_size = self._find_prospects()
        """The head whose choices ``observation["prospects"]`` describes, and the numbers about each; None and 0."""
        entries = {path: space for path, space in self._entries.items() if path not in special}
        if not entries:
            raise ValueError(f"expected an entry besides '{MASK}' in the observation, got {self._observation_space}")
        self.leaves = read_leaves(entries, own_encoders)
        """Of the observation, but for the mask and the slots."""
        self._features = [leaf for leaf in self.leaves if leaf.part is None]
        self._parts = [leaf for leaf in self.leaves if leaf.part is not None]
        self.state_dim = sum(leaf.size for leaf in self._features)
        self.parts = tuple(leaf.part for leaf in self._parts if leaf.part is not None)
        """What of the observation is no features, for :class:`~esper.tamiyo.networks.NetworkConfig`."""

    @cached_property
    def _entries(self) -> dict[str, spaces.Space]:
        """The leaves of the observation space by path, but for the mask."""
        whole = self._observation_space
        if not isinstance(whole, TREES):
            return {"observation": whole}
        if isinstance(whole, spaces.Dict):
            whole = spaces.Dict([(key, space) for key, space in whole.items() if key != MASK])
        return leaves(whole)

    def _shown(self, observation: Any) -> dict[str, Any]:
        """What lies at the leaves, by path."""
        if not isinstance(self._observation_space, TREES):
            return {"observation": observation}
        if isinstance(observation, Mapping):
            observation = {key: value for key, value in observation.items() if key != MASK}
        shown, expected = values(observation), self._entries
        if missing := sorted(expected.keys() - shown.keys()):
            raise ValueError(f"expected an observation with the entries {list(expected)}, without {missing}")
        return shown

    def _find_slots(self) -> int:
        space = self._entries.get(SLOTS)
        if space is None:
            return 0
        if not (isinstance(space, (spaces.Box, spaces.MultiDiscrete)) and len(space.shape) == 1):
            raise ValueError(f"observation '{SLOTS}': expected a vector of integers, one per slot, got {space}")
        return int(space.shape[0])

    def _find_prospects(self) -> tuple[str | None, int]:
        """Choices are described where a head depends on the slot drawn, and there is what describes them in each."""
        space = self._entries.get(PROSPECTS) if self.num_slots else None
        if space is None:
            return None, 0
        of_slots = [h for h in self.heads if h.parent and self.heads.named(h.parent).points_at_slots]
        for head in of_slots:
            if isinstance(space, spaces.Box) and space.shape[:-1] == (self.num_slots, self.sizes[head.name]):
                return head.name, space.shape[-1]
        expected = {head.name: f"[{self.num_slots}, {self.sizes[head.name]}, P]" for head in of_slots}
        raise ValueError(
            f"observation '{PROSPECTS}': expected what describes the choices of a head in each slot, {expected}; "
            f"got {space}"
        )

    def features_of(self, names: Collection[str]) -> Tensor:
        """Which of the features are those of the parts called so, bool [D].

        Raises:
            ValueError: For a name that is no part, or of one that is no features.
        """
        known = [leaf.name for leaf in self._features]
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"expected names of parts of the observation that are features, {known}, got {unknown}")
        return torch.tensor([leaf.name in names for leaf in self._features for _ in range(leaf.size)])

    # ------------------------------------------------------------------ to the policy

    def encode(
        self,
        observation: Any,
        infos: Mapping[str, Any],
        ignore: np.ndarray | None = None,
        last: np.ndarray | None = None,
    ) -> PolicyInput:
        """Inputs [K, ...] for a batched observation.

        Args:
            observation: As ``reset`` or ``step`` returned it.
            infos: As returned with it.
            ignore: [K] bool, rows whose content means nothing (an episode has terminated and the next one has not
                begun): they become zeros that allow everything.
            last: [K] bool, rows that end an episode without terminating it: only their value is asked for, so that a
                mask that allows nothing allows everything.

        Raises:
            ValueError: For an entry that is missing, of another shape or type, not finite or outside of its space, or a
                mask of the wrong shape, named.

        Warns:
            ObservationOutsideSpaceWarning: Once, for a number outside of the bounds of its Box.
        """
        masks = self._masks.read(observation, infos, self.num_envs, ignore=ignore, last=last)
        return self._encode(observation, masks, self.num_envs, ignore)

    def encode_final(self, infos: Mapping[str, Any], rows: np.ndarray) -> PolicyInput:
        """Inputs [len(rows), ...] for the final observations of these environments, after same-step autoreset."""
        final = infos.get("final_obs")
        if final is None:
            raise ValueError(
                "expected infos['final_obs'] on a step that truncated an episode under same-step autoreset, got none; "
                "its value stands in for the rest of the episode, so it cannot be done without"
            )
        if isinstance(final, (Mapping, tuple)):
            observation = rows_of(final, rows)
        else:
            space = self._observation_space
            empty: Any = create_empty_array(space, len(rows))
            observation = concatenate(space, [final[row] for row in rows], empty)
        given = infos.get("final_info", {})
        final_infos = {
            key: rows_of(given[key], rows) for name in IN_INFOS for key in (name, f"_{name}") if key in given
        }
        last = np.ones(len(rows), dtype=bool)
        masks = self._masks.read(observation, final_infos, len(rows), ignore=None, last=last, final=True)
        return self._encode(observation, masks, len(rows))

    def _encode(
        self, observation: Any, masks: Mapping[str, Tensor | None], rows: int, ignore: np.ndarray | None = None
    ) -> PolicyInput:
        shown = self._shown(observation)
        features = [leaf.features(leaf.checked(shown[leaf.name], rows, ignore)) for leaf in self._features]
        joined = np.concatenate(features, axis=-1) if features else np.zeros((rows, 0), np.float32)
        if ignore is not None:
            joined[ignore] = 0.0
        inputs = PolicyInput(
            features=torch.from_numpy(joined),
            blueprint_indices=torch.from_numpy(np.array(shown[SLOTS], np.int64)) if self.num_slots else None,
            masks=masks,
            parts={leaf.name: leaf.encoded(leaf.checked(shown[leaf.name], rows, ignore)) for leaf in self._parts}
            | self._prospects(shown, ignore),
        )
        return inputs.map(lambda x: x.to(self.device))

    def _prospects(self, shown: Mapping[str, Any], ignore: np.ndarray | None) -> dict[str, Tensor]:
        if self.described_head is None:
            return {}
        prospects = np.array(shown[PROSPECTS], np.float32)
        if ignore is not None:
            prospects[ignore] = 0.0
        return {PROSPECTS: torch.from_numpy(prospects)}


def make_envs(
    env_id: str,
    num_envs: int,
    *,
    wrappers: Sequence[Callable[[gym.Env], gym.Wrapper]] = (),
    vectorization: Literal["auto", "sync", "async"] = "auto",
    **kwargs: Any,
) -> VectorEnv:
    """``num_envs`` copies of a registered environment as one vector environment.

    Args:
        env_id: Id of the environment; ``module:Id-v0`` imports a module first.
        num_envs: K.
        wrappers: Applied to each copy, the first innermost.
        vectorization: "sync": copies in this process; "async": in a process each; "auto": the environment's own
            vectorised form where there is one and no wrapper is given, otherwise copies in this process. Copies begin
            their next episode on the same step, which wastes no row.
        **kwargs: Arguments of the environment.

    Raises:
        ValueError: When there is no such module.
    """
    name = imported(env_id)
    if vectorization == "auto" and gym.spec(name).vector_entry_point is not None and not wrappers:
        return gym.make_vec(name, num_envs, **kwargs)
    return gym.make_vec(
        name,
        num_envs,
        vectorization_mode="async" if vectorization == "async" else "sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        wrappers=wrappers,
        **kwargs,
    )


def imported(env_id: str) -> str:
    """The id alone, after the module before it has been imported, if there is one.

    Raises:
        ValueError: When there is no such module.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"environment '{env_id}': {error}; expected module:Id-v0, or Id-v0 alone") from error
    return name
