"""Action masks in every form that environments give them.

Legend: K rows (environments), n choices or bits of a head.

A mask is looked for in the observation (``"action_mask"``), in ``infos`` (``"action_mask"``, or ``"action_masks"`` as
sb3-contrib has it), and at a method ``action_masks()`` of the environments (sb3-contrib, too), in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from esper.heads import HeadTable
from esper.simic.spaces.trees import values

MASK = "action_mask"
"""Key of the mask in a Dict observation or in ``infos``."""

IN_INFOS = (MASK, "action_masks")
"""Keys of the mask in ``infos``, with Gymnasium's flags of who gave one beside it ("_action_mask")."""

METHOD = "action_masks"
"""Method of an environment, or of a whole vector environment, that tells the mask of its present state."""


class MaskReader:
    """Finds the masks, wherever the environments give them, and checks them.

    Args:
        envs: The environments.
        heads: The heads.
        num_slots: S.

    The forms of a mask: one array [K, ...] for all heads that have choices, one after the other (2 for each bit of a
    Bernoulli head: may it be 0, may it be 1); or arrays by head, as a mapping, nested or named by path.
    """

    def __init__(self, envs: VectorEnv, heads: HeadTable, num_slots: int) -> None:
        self.heads, self.num_slots = heads, num_slots
        self.sizes = {
            head.name: heads.sizes(num_slots)[head.name] * (1 if head.is_categorical else 2)
            for head in heads
            if head.kind != "gaussian"
        }
        self._in_observation = isinstance(envs.single_observation_space, spaces.Dict) and MASK in set(
            envs.single_observation_space
        )
        self._ask = None if self._in_observation else _method(envs)
        self._key: str | None = None
        self._begun = False

    def read(
        self,
        observation: Any,
        infos: Mapping[str, Any],
        rows: int,
        *,
        ignore: np.ndarray | None,
        last: np.ndarray | None,
        final: bool = False,
    ) -> dict[str, Tensor | None]:
        """Masks by head; ``None`` where everything is allowed.

        Args:
            observation: As shown.
            infos: As given with it.
            rows: K.
            ignore: [K] bool, rows whose content means nothing: everything is allowed.
            last: [K] bool, rows that end an episode. Nothing is done there any more, only V is asked for: what allows
                nothing, or is missing, allows everything.
            final: The observations are the last of their episodes, and the environments stand in the next ones.

        Raises:
            ValueError: For a mask of another shape or type, for unknown heads, or given at some times only.
        """
        ended = last if ignore is None else ignore if last is None else ignore | last
        found: Any = None
        flags: np.ndarray | None = None
        if self._in_observation:
            found = observation[MASK]
        else:
            key = self._key_in(infos, final=final)
            if key is not None:
                found, flags = infos[key], infos.get(f"_{key}")
            elif self._ask is not None and self._key is None and not final:
                found = self._ask()
        if found is None:
            return dict.fromkeys(self.heads.names)
        if flags is not None:
            self._check_flags(key, np.asarray(flags), ended)
        return self._encoded(self._by_head(found, rows), rows, ignore, ended)

    def _key_in(self, infos: Mapping[str, Any], *, final: bool) -> str | None:
        """The key under which ``infos`` holds the mask: always the same, or never one."""
        key = next((key for key in IN_INFOS if key in infos), None)
        if final:
            return key
        if not self._begun:
            self._begun, self._key = True, key
        if key != self._key:
            raise ValueError(
                f"expected infos['{self._key or key}'] on every reset and step, or on none; got it on some only"
            )
        return key

    def _check_flags(self, key: str | None, given: np.ndarray, ended: np.ndarray | None) -> None:
        missing = ~given if ended is None else ~given & ~ended
        if missing.any():
            raise ValueError(
                f"environment {int(missing.argmax())} gave no infos['{key}'] while others did; give it on every reset "
                "and step, all ones where everything is allowed"
            )

    # ------------------------------------------------------------------ forms

    def _by_head(self, mask: Any, rows: int) -> dict[str, np.ndarray]:
        if not isinstance(mask, (Mapping, tuple)):
            return self._split(list(self.sizes), _array(mask), rows)
        masks: dict[str, np.ndarray] = {}
        for path, value in values(mask).items():
            several = [name for name in self.sizes if name.rpartition("_")[0] == path]
            if path not in self.heads.names and several:
                masks |= self._split(several, _array(value), rows)
            else:
                masks[path] = _array(value)
        unknown = sorted(set(masks) - set(self.heads.names))
        if unknown:
            raise ValueError(f"'{MASK}' names unknown heads {unknown}; the heads are {list(self.heads.names)}")
        return masks

    def _split(self, names: list[str], mask: np.ndarray, rows: int) -> dict[str, np.ndarray]:
        """One array for several heads: their masks one after the other, as for a MultiDiscrete action."""
        sizes = [self.sizes[name] for name in names]
        if mask.dtype == object or mask.size != rows * sum(sizes) or len(mask) != rows:
            raise ValueError(
                f"'{MASK}': expected [{rows}, {sum(sizes)}] (the choices of {', '.join(names)} one after the "
                f"other) or a mapping from head to mask, got {mask.dtype} {list(mask.shape)}"
            )
        parts = np.split(mask.reshape(rows, -1), np.cumsum(sizes)[:-1], axis=-1)
        return dict(zip(names, parts, strict=True))

    def _encoded(
        self, masks: Mapping[str, np.ndarray], rows: int, ignore: np.ndarray | None, ended: np.ndarray | None
    ) -> dict[str, Tensor | None]:
        encoded: dict[str, Tensor | None] = dict.fromkeys(self.heads.names)
        for name, value in masks.items():
            mask = self._checked(name, value, rows)
            if ignore is not None:
                mask[ignore] = True
            if ended is not None:
                mask[ended] |= ~mask[ended].any(-1, keepdims=True)
            encoded[name] = torch.from_numpy(mask)
        return encoded

    def _checked(self, name: str, given: np.ndarray, rows: int) -> np.ndarray:
        """The mask as booleans, of the shape that the policy takes."""
        shapes = [(rows, *shape) for shape in self.heads.mask_shapes(name, self.num_slots)]
        if not shapes:
            raise ValueError(
                f"mask of head '{name}': numbers have no mask; leave it out, narrow the bounds of the action space, or "
                "let a categorical head before it say by used_when when it is used"
            )
        mask = given
        if not self.heads.named(name).is_categorical and mask.shape == (rows, self.sizes[name]):
            mask = mask.reshape(shapes[0])
        if mask.shape not in shapes or mask.dtype.kind not in "biu":
            raise ValueError(
                f"mask of head '{name}': expected booleans (or 0 and 1) of shape {' or '.join(map(str, shapes))}, "
                f"got {given.dtype} {given.shape}"
            )
        return mask.astype(bool)


def _array(mask: Any) -> np.ndarray:
    """As an array; rows that came as lists, or not at all (Gymnasium leaves ``None``), as those that came."""
    array = np.asarray(mask)
    if array.dtype != object:
        return array
    shapes = {np.shape(row) for row in array if row is not None}
    if len(shapes) != 1:
        return array
    (shape,) = shapes
    return np.stack([np.zeros(shape, bool) if row is None else np.asarray(row) for row in array])


def _method(envs: VectorEnv) -> Callable[[], np.ndarray] | None:
    """Asks the environments for their masks, if they have the method."""
    own = getattr(envs, METHOD, None)
    if callable(own):
        return own
    base: Any = envs.unwrapped
    if hasattr(base, "envs"):
        has = all(env.has_wrapper_attr(METHOD) for env in base.envs)
    elif hasattr(base, "env_fns"):  # in other processes, where asking for what is not there ends them
        example = base.env_fns[0]()
        has = example.has_wrapper_attr(METHOD)
        example.close()
    else:
        has = False
    return (lambda: np.stack([np.asarray(mask) for mask in base.call(METHOD)])) if has else None
