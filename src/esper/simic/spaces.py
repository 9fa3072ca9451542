"""Between a Gymnasium vector environment and a policy: observations to inputs, choices to actions.

Legend: K environments, D features, S slots, n choices of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor

from esper.heads import Head, HeadTable
from esper.tamiyo.policy.lstm_bundle import PolicyInput

MASK = "action_mask"
"""Key of the mask in a Dict observation or in ``infos``."""
SLOTS = "blueprints"
"""Key of the blueprint indices in a Dict observation."""
PROSPECTS = "prospects"
"""Key of what is known of each blueprint in each slot, in a Dict observation with slots."""

_OBSERVATIONS = (
    "supported observations are Box of at most 2 dimensions, Discrete, MultiDiscrete, MultiBinary, "
    f"and Dict of these with an optional '{MASK}'"
)
_ACTIONS = "supported actions are Discrete, MultiDiscrete, and Dict of Discrete"

Encoder = Callable[[np.ndarray], np.ndarray]


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


# ---------------------------------------------------------------------- actions


def heads_of(space: spaces.Space) -> HeadTable:
    """A table of heads for an action space: one head per choice, each used always and drawn after the ones before it.

    Raises:
        ValueError: For a space that is not discrete.
    """
    if isinstance(space, spaces.Discrete):
        return HeadTable([Head("action", int(space.n))])
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return HeadTable([Head(f"action_{i}", int(n)) for i, n in enumerate(space.nvec)])
    if isinstance(space, spaces.Dict):
        entries = {name: s for name, s in space.items() if isinstance(s, spaces.Discrete)}
        if len(entries) == len(space):
            return HeadTable([Head(name, int(s.n)) for name, s in entries.items()])
    if isinstance(space, spaces.Box):
        raise ValueError(f"continuous actions are not supported, got {space}; {_ACTIONS}")
    raise ValueError(f"unsupported action space {space}; {_ACTIONS}")


def declared_heads(envs: VectorEnv) -> HeadTable:
    """The heads of ``envs``: those it declares, or else those of its action space.

    An environment declares its heads as ``metadata["heads"]``, in the form of :meth:`HeadTable.to_json`.
    """
    declared = envs.metadata.get("heads")
    return heads_of(envs.single_action_space) if declared is None else HeadTable.from_json(declared)


def _starts_of(space: spaces.Space) -> dict[str, Any]:
    """First action of each entry of a Dict space."""
    entries = space.items() if isinstance(space, spaces.Dict) else ()
    return {name: s.start for name, s in entries if isinstance(s, spaces.Discrete)}


# ---------------------------------------------------------------------- observations


def _encoder(key: str, space: spaces.Space) -> tuple[int, Encoder]:
    """Number of features of one entry, and the function that makes them of a batch of it."""
    if isinstance(space, spaces.Box) and len(space.shape) <= 2:
        size = int(np.prod(space.shape))
        return size, lambda batch: np.asarray(batch, np.float32).reshape(-1, size)
    if isinstance(space, spaces.Box):
        raise ValueError(
            f"observation '{key}' has shape {space.shape}: images are not supported, flatten or encode them first "
            f"(gymnasium.wrappers.FlattenObservation); {_OBSERVATIONS}"
        )
    if isinstance(space, spaces.Discrete):
        table = np.eye(int(space.n), dtype=np.float32)
        first = int(space.start)
        return len(table), lambda batch: table[_within(key, space, np.asarray(batch) - first, len(table))]
    if isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
        return size, lambda batch: np.asarray(batch, np.float32).reshape(-1, size)
    if isinstance(space, spaces.MultiDiscrete):
        tables = [np.eye(int(n), dtype=np.float32) for n in space.nvec.flat]
        starts = space.start.flatten()

        def one_hot(batch: np.ndarray) -> np.ndarray:
            columns = (np.asarray(batch).reshape(-1, len(tables)) - starts).T
            choices = [_within(key, space, c, len(t)) for t, c in zip(tables, columns, strict=True)]
            return np.concatenate([t[c] for t, c in zip(tables, choices, strict=True)], axis=-1)

        return sum(map(len, tables)), one_hot
    raise ValueError(f"observation '{key}': unsupported space {space}; {_OBSERVATIONS}")


def _within(key: str, space: spaces.Space, choices: np.ndarray, size: int) -> np.ndarray:
    """``choices``, all from 0 to below ``size``; a negative one would be read from the table's other end."""
    outside = (choices < 0) | (choices >= size)
    if outside.any():
        raise ValueError(f"observation '{key}' of environment {int(outside.argmax())} is outside of its space {space}")
    return choices


class EnvironmentAdapter:
    """What a vector environment shows, as :class:`PolicyInput`; what a policy chooses, as the environment's actions.

    Features are the entries of the observation flattened and joined in key order (discrete ones one-hot), except the
    mask and the slots. The mask is taken from the observation, or else from ``infos``.

    Args:
        envs: Any ``gymnasium.vector.VectorEnv`` with discrete actions.
        heads: The heads, in the order they are drawn. ``None``: what the environment declares, or else what its action
            space gives.
        device: Where the policy's tensors live.

    Raises:
        ValueError: For spaces that are not supported, or heads that do not fit the action space.
    """

    def __init__(self, envs: VectorEnv, heads: HeadTable | None = None, device: torch.device | str = "cpu") -> None:
        self.num_envs = envs.num_envs
        self.device = torch.device(device)
        self._action_space = envs.single_action_space
        self._observation_space = envs.single_observation_space
        self._entries = dict(self._as_entries(self._observation_space).items())
        self.heads = declared_heads(envs) if heads is None else heads
        self.num_slots = self._find_slots()
        self.sizes = self.heads.sizes(self.num_slots)
        self._starts = _starts_of(self._action_space)
        self._check_heads()
        self._encoders = {k: _encoder(k, space) for k, space in self._entries.items() if k not in self._special()}
        if not self._encoders:
            raise ValueError(f"expected an entry besides '{MASK}' in the observation, got {list(self._entries)}")
        self.state_dim = sum(size for size, _ in self._encoders.values())
        self._masks_in_infos: bool | None = None

    def _as_entries(self, whole: Any) -> Any:
        """A Dict observation (or its space) by key; any other as the one entry "observation"."""
        return whole if isinstance(self._observation_space, spaces.Dict) else {"observation": whole}

    def _special(self) -> tuple[str, ...]:
        """Entries that are no features."""
        return (MASK, SLOTS, PROSPECTS) if self.num_slots else (MASK,)

    def _find_slots(self) -> int:
        if SLOTS not in self._entries:
            return 0
        space = self._entries[SLOTS]
        if not (isinstance(space, (spaces.Box, spaces.MultiDiscrete)) and len(space.shape) == 1):
            raise ValueError(f"observation '{SLOTS}': expected a vector of integers, one per slot, got {space}")
        return int(space.shape[0])

    def _check_heads(self) -> None:
        sizes = heads_of(self._action_space).sizes(0)
        if isinstance(self._action_space, spaces.Dict):
            fits = sizes == self.sizes
        else:  # the order tells which head is which
            fits = list(sizes.values()) == list(self.sizes.values())
        if not fits:
            raise ValueError(f"heads {self.sizes} (name: choices) do not fit the action space {self._action_space}")

    # ------------------------------------------------------------------ to the policy

    def encode(self, observation: Any, infos: Mapping[str, Any], ignore: np.ndarray | None = None) -> PolicyInput:
        """Inputs [K, ...] for a batched observation.

        Args:
            observation: As ``reset`` or ``step`` returned it.
            infos: As returned with it.
            ignore: [K] bool, rows whose content means nothing (an episode has terminated and the next one has not
                begun): they become zeros that allow everything.

        Raises:
            ValueError: For an entry that is missing, of another shape or type, not finite or outside of its space, or a
                mask of the wrong shape, named.
        """
        return self._encode(observation, infos, self.num_envs, ignore)

    def _encode(
        self, observation: Any, infos: Mapping[str, Any], rows: int, ignore: np.ndarray | None = None
    ) -> PolicyInput:
        entries = self._as_entries(observation)
        self._check_entries(entries, rows)
        features = np.concatenate([encode(entries[key]) for key, (_, encode) in self._encoders.items()], axis=-1)
        if ignore is not None:
            features[ignore] = 0.0
        self._check_finite(features)
        inputs = PolicyInput(
            features=torch.from_numpy(features),
            blueprint_indices=torch.from_numpy(np.array(entries[SLOTS], np.int64)) if self.num_slots else None,
            masks=self._encode_masks(self._mask_source(entries, infos), rows, ignore),
        )
        return inputs.map(lambda x: x.to(self.device))

    def encode_final(self, infos: Mapping[str, Any], rows: np.ndarray) -> PolicyInput:
        """Inputs [len(rows), ...] for the final observations of these environments, after same-step autoreset."""
        final = infos.get("final_obs")
        if final is None:
            raise ValueError(
                "expected infos['final_obs'] on a step that truncated an episode under same-step autoreset, got none; "
                "its value stands in for the rest of the episode, so it cannot be done without"
            )
        if isinstance(final, Mapping):
            observation: Any = {key: np.asarray(batch)[rows] for key, batch in final.items() if key != MASK}
            if MASK in final:
                observation[MASK] = _take(final[MASK], rows)
        else:
            chosen = [final[row] for row in rows]
            space = self._observation_space
            empty: Any = create_empty_array(space, len(chosen))
            observation = concatenate(space, chosen, empty)
        final_info = infos.get("final_info", {})
        infos = {MASK: _take(final_info[MASK], rows)} if MASK in final_info else {}
        return self._encode(observation, infos, len(rows))

    def _check_entries(self, entries: Mapping[str, Any], rows: int) -> None:
        """Every entry is there, as numbers of the shape that its space says."""
        if missing := sorted(self._entries.keys() - entries.keys()):
            raise ValueError(f"expected an observation with the entries {list(self._entries)}, without {missing}")
        for key, space in self._entries.items():
            if key == MASK:
                continue
            batch, expected = np.asarray(entries[key]), (rows, *(space.shape or ()))
            if batch.shape != expected or batch.dtype.kind not in "biuf":
                raise ValueError(
                    f"observation '{key}': expected numbers of shape {expected}, one row per environment, "
                    f"got {batch.dtype} {batch.shape}"
                )

    def _check_finite(self, features: np.ndarray) -> None:
        if np.isfinite(features).all():
            return
        row, column = (int(i) for i in np.argwhere(~np.isfinite(features))[0])
        owners = [key for key, (size, _) in self._encoders.items() for _ in range(size)]
        raise ValueError(
            f"observation '{owners[column]}' of environment {row} is not finite ({features[row, column]} at feature "
            f"{column}); the environment must not return NaN or infinity"
        )

    # ------------------------------------------------------------------ masks

    def _mask_source(self, entries: Mapping[str, Any], infos: Mapping[str, Any]) -> dict[str, Any]:
        """Masks by head, as arrays; empty where there are none."""
        if MASK in entries:
            return self._by_head(entries[MASK])
        if self._masks_in_infos is None:
            self._masks_in_infos = MASK in infos
        if self._masks_in_infos != (MASK in infos):
            raise ValueError(f"expected infos['{MASK}'] on every reset and step, or on none; got it on some only")
        return self._by_head(infos[MASK]) if self._masks_in_infos else {}

    def _by_head(self, mask: Any) -> dict[str, Any]:
        if isinstance(mask, Mapping):
            masks = {name: m for name, m in mask.items() if not (name.startswith("_") and name[1:] in mask)}
        else:
            masks = self._split(np.asarray(mask))
        unknown = sorted(set(masks) - set(self.sizes))
        if unknown:
            raise ValueError(f"'{MASK}' names unknown heads {unknown}; the heads are {list(self.sizes)}")
        return masks

    def _split(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        """One array for all heads: their masks one after the other, as for a MultiDiscrete action."""
        total = sum(self.sizes.values())
        if mask.shape[-1] != total or mask.ndim != 2:
            raise ValueError(
                f"'{MASK}': expected [{self.num_envs}, {total}] (the choices of {', '.join(self.sizes)} one after the "
                f"other) or a mapping from head to mask, got {list(mask.shape)}"
            )
        ends = np.cumsum(list(self.sizes.values()))[:-1]
        return dict(zip(self.sizes, np.split(mask, ends, axis=-1), strict=True))

    def _encode_masks(self, masks: Mapping[str, Any], rows: int, ignore: np.ndarray | None) -> dict[str, Tensor | None]:
        encoded: dict[str, Tensor | None] = dict.fromkeys(self.sizes)
        for name, value in masks.items():
            mask = np.array(value)
            self._check_mask(name, mask, rows)
            mask = mask.astype(bool)
            if ignore is not None:
                mask[ignore] = True
            encoded[name] = torch.from_numpy(mask)
        return encoded

    def _check_mask(self, name: str, mask: np.ndarray, rows: int) -> None:
        shapes = [(rows, *shape) for shape in self.heads.mask_shapes(name, self.num_slots)]
        if mask.shape not in shapes or mask.dtype.kind not in "biu":
            raise ValueError(
                f"mask of head '{name}': expected booleans (or 0 and 1) of shape {' or '.join(map(str, shapes))}, "
                f"got {mask.dtype} {mask.shape}"
            )

    # ------------------------------------------------------------------ to the environment

    def decode(self, actions: Mapping[str, Tensor]) -> Any:
        """The batch of actions that ``envs.step`` takes, from choices {head: [K]}."""
        choices = {name: actions[name].cpu().numpy() for name in self.sizes}
        space = self._action_space
        if isinstance(space, spaces.Dict):
            return {name: choices[name] + start for name, start in self._starts.items()}
        if isinstance(space, spaces.Discrete):
            (choice,) = choices.values()
            return choice + space.start
        assert isinstance(space, spaces.MultiDiscrete)
        return np.stack(list(choices.values()), axis=-1) + space.start


def _take(value: Any, rows: np.ndarray) -> Any:
    """``rows`` of every array in a nested mapping."""
    if isinstance(value, Mapping):
        return {key: _take(v, rows) for key, v in value.items()}
    return np.asarray(value)[rows]


def make_envs(env_id: str, num_envs: int, **kwargs: Any) -> VectorEnv:
    """``num_envs`` copies of a registered environment as one vector environment.

    The environment's own vectorised form is used where there is one; otherwise copies run in this process and begin
    their next episode on the same step, which wastes no row.
    """
    spec = gym.spec(env_id)
    if spec.vector_entry_point is not None:
        return gym.make_vec(env_id, num_envs, **kwargs)
    return gym.make_vec(env_id, num_envs, vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}, **kwargs)
