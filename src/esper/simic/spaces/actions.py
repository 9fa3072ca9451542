"""Action spaces: the heads they give, and the actions that choices become.

Legend: K environments, n choices, bits or numbers of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from esper.heads import Head, HeadTable
from esper.simic.spaces.trees import TREES, branches, joined

ACTION_SPACES: dict[type[spaces.Space], str] = {
    spaces.Discrete: "a categorical head",
    spaces.MultiDiscrete: "a categorical head for each entry",
    spaces.MultiBinary: "a Bernoulli head: a bit for each entry",
    spaces.Box: "a Gaussian head with a learned deviation, squashed by tanh into bounds that must be finite",
    spaces.Dict: "the heads of its entries, nested as you like",
    spaces.Tuple: "the heads of its entries, nested as you like",
}
"""What may be an action, and what it becomes. Any head may stand below a categorical one."""


def heads_of(space: spaces.Space) -> HeadTable:
    """A table of heads for an action space, each used always and drawn after the ones before it.

    A head is named by the path to its space ("arm/force"; "action" where there is no path), and the heads of a
    MultiDiscrete space are numbered ("action_0").

    Raises:
        ValueError: For a space that is not supported.
    """
    return HeadTable(_heads(space, ""))


def _heads(space: spaces.Space, path: str) -> list[Head]:
    if isinstance(space, TREES):
        return [head for key, inner in branches(space).items() for head in _heads(inner, joined(path, key))]
    name = path or "action"
    if isinstance(space, spaces.Discrete):
        return [Head(name, int(space.n))]
    if isinstance(space, spaces.MultiDiscrete):
        return [Head(f"{name}_{i}", int(n)) for i, n in enumerate(space.nvec.flat)]
    if isinstance(space, spaces.MultiBinary):
        return [Head(name, int(np.prod(space.shape)), kind="bernoulli")]
    if isinstance(space, spaces.Box):
        _check_box(name, space)
        return [Head(name, int(np.prod(space.shape)), kind="gaussian")]
    supported = ", ".join(kind.__name__ for kind in ACTION_SPACES)
    raise ValueError(
        f"action '{name}': unsupported space {space}; supported actions are {supported}. "
        "Show the policy one of these, and translate (gymnasium.wrappers.TransformAction)"
    )


def _check_box(name: str, space: spaces.Box) -> None:
    if not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"action '{name}': expected a Box of floating point numbers, got {space}; whole numbers are choices: "
            "declare a MultiDiscrete space, and translate (gymnasium.wrappers.TransformAction)"
        )
    infinite = np.flatnonzero(~(np.isfinite(space.low) & np.isfinite(space.high)))
    if len(infinite):
        i = infinite[0]
        raise ValueError(
            f"action '{name}': expected a Box with finite bounds, got {space}, whose number {i} lies between "
            f"{space.low.flat[i]} and {space.high.flat[i]}; say within which bounds to act "
            "(gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high)))"
        )


def declared_heads(envs: VectorEnv) -> HeadTable:
    """The heads of ``envs``: those it declares, or else those of its action space.

    An environment declares its heads as ``metadata["heads"]``, in the form of :meth:`HeadTable.to_json`.
    """
    declared = envs.metadata.get("heads")
    return heads_of(envs.single_action_space) if declared is None else HeadTable.from_json(declared)


class ActionDecoder:
    """Makes of what was drawn the actions of a space.

    Args:
        space: The action space of one environment.
        heads: The heads; those of a Dict or Tuple space by their names, of another in their order.
        sizes: How many choices each head has.

    Raises:
        ValueError: When the heads do not fit the space.
    """

    def __init__(self, space: spaces.Space, heads: HeadTable, sizes: Mapping[str, int]) -> None:
        self.space = space
        own = heads_of(space)
        expected = [(head.name, head.kind, head.num_choices) for head in own]
        got = [(head.name, head.kind, sizes[head.name]) for head in heads]
        fits = sorted(expected) == sorted(got)
        if not isinstance(space, TREES):  # the order tells which head is which
            fits = [row[1:] for row in expected] == [row[1:] for row in got]
        if not fits:
            raise ValueError(
                f"heads {_described(got)} (name: choices) do not fit the action space {space}; it takes "
                f"{_described(expected)}"
            )
        self._declared = (
            dict.fromkeys(own.names) if isinstance(space, TREES) else dict(zip(own.names, heads.names, strict=True))
        )

    def __call__(self, actions: Mapping[str, Tensor]) -> Any:
        """The batch of actions that ``envs.step`` takes, from what was drawn, {head: [K] or [K, n]}."""
        drawn = {own: actions[name or own].cpu().numpy() for own, name in self._declared.items()}
        return self._action(self.space, "", drawn)

    def _action(self, space: spaces.Space, path: str, drawn: Mapping[str, np.ndarray]) -> Any:
        if isinstance(space, TREES):
            inner = {key: self._action(s, joined(path, key), drawn) for key, s in branches(space).items()}
            return inner if isinstance(space, spaces.Dict) else tuple(inner.values())
        name = path or "action"
        if isinstance(space, spaces.Discrete):
            return drawn[name] + space.start
        if isinstance(space, spaces.MultiDiscrete):
            choices = np.stack([drawn[f"{name}_{i}"] for i in range(space.nvec.size)], axis=-1)
            return choices.reshape(-1, *space.shape) + space.start
        if isinstance(space, spaces.MultiBinary):
            return drawn[name].astype(space.dtype).reshape(-1, *space.shape)
        assert isinstance(space, spaces.Box)
        share = (1 + np.tanh(drawn[name].astype(np.float64)).reshape(-1, *space.shape)) / 2
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return np.clip((low + share * (high - low)).astype(space.dtype), space.low, space.high)


def _described(rows: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    return {name: n if kind == "categorical" else f"{n} {kind}" for name, kind, n in rows}
