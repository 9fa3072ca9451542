"""A trained policy as a file that runs where Esper is not installed.

Legend: B rows, n choices, bits or numbers of a head, H size of the core.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from esper.programs import write_program
from esper.simic.control.normalization import RunningMeanStd
from esper.simic.spaces.actions import heads_of
from esper.simic.spaces.observations import Leaf
from esper.simic.spaces.trees import TREES, leaves
from esper.tamiyo.networks.checks import HiddenState
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

Arrays = dict[str, Tensor]


def export_policy(
    policy: LSTMPolicyBundle,
    shown: Sequence[Leaf],
    action_space: spaces.Space,
    masks: Mapping[str, tuple[int, ...]],
    path: Path,
) -> Path:
    """Write the likeliest action of ``policy``, with all that prepares observations and actions, to ``path``.

    A ``.pt2`` file is called ``actions, state = program(observation, masks, state)``: the observation by part (one that
    has no parts is called "observation"), bool masks by head, and the memory ``(h, c)``, ``[num_layers, B, H]``, zeros
    at the start of an episode; actions by part ("action", if there are none). An ``.onnx`` file has the same as named
    inputs and outputs: the parts, ``mask/{head}``, ``h``, ``c`` in; the actions, ``next_h``, ``next_c`` out. B is free.

    Args:
        policy: The policy; it is left as it is.
        shown: The leaves of the observation.
        action_space: Of one environment.
        masks: Shape of the mask of one row, for every head that has one.
        path: ``*.pt2`` or ``*.onnx`` (needs the packages of ``esper-lite[onnx]``), replaced as a whole or not at all.

    Raises:
        ValueError: For another suffix, missing packages.
    """
    program = PolicyProgram(policy, shown, action_space)
    observation = {leaf.name: _example(leaf) for leaf in shown}
    allowed = {head: torch.ones(2, *shape, dtype=torch.bool) for head, shape in masks.items()}
    arguments = (observation, allowed, program.network.initial_hidden(2))
    actions, _ = program(*arguments)  # outside of export: what PyTorch code keeps for later must be ordinary tensors

    def make() -> ExportedProgram:
        free = {0: Dim.DYNAMIC}
        rows = (dict.fromkeys(observation, free), dict.fromkeys(masks, free), ({1: Dim.DYNAMIC}, {1: Dim.DYNAMIC}))
        return torch.export.export(program, arguments, dynamic_shapes=rows, strict=False)

    return write_program(
        make,
        path,
        input_names=[*observation, *(f"mask/{head}" for head in masks), "h", "c"],
        output_names=[*actions, "next_h", "next_c"],
    )


class PolicyProgram(nn.Module):
    """A policy from what its environment shows to what it takes, in PyTorch alone.

    Args:
        policy: It is copied.
        shown: The leaves of the observation.
        action_space: Of one environment.
    """

    def __init__(self, policy: LSTMPolicyBundle, shown: Sequence[Leaf], action_space: spaces.Space) -> None:
        super().__init__()
        self.network = copy.deepcopy(policy.network).requires_grad_(False).cpu().eval()
        self.network.check_values = False
        self.normalizer = copy.deepcopy(policy.observation_normalizer)
        if isinstance(self.normalizer, RunningMeanStd):
            self.normalizer.cpu()
        self.shown, self.action_space, self.op_share = shown, action_space, policy.op_share

    def forward(self, observation: Arrays, masks: Arrays, state: HiddenState) -> tuple[Arrays, HiddenState]:
        """Actions by part, and the memory after them."""
        features = [_features(leaf, observation[leaf.name]) for leaf in self.shown if leaf.part is None]
        parts = {leaf.name: _part(leaf, observation[leaf.name]) for leaf in self.shown if leaf.part is not None}
        features_BD = torch.cat(features, dim=-1) if features else torch.zeros(state[0].shape[1], 0)
        if self.normalizer is not None:
            features_BD = self.normalizer.normalize(features_BD)
        output = self.network.get_action(
            features_BD,
            None,
            {head: masks.get(head) for head in self.network.heads.names},
            state,
            deterministic=True,
            op_share=self.op_share,
            parts=parts,
        )
        return self._taken(output.actions), output.hidden

    def _taken(self, drawn: Mapping[str, Tensor]) -> Arrays:
        """What was drawn, as the environment takes it."""
        names = heads_of(self.action_space).names
        if not isinstance(self.action_space, TREES):  # there the order tells which head is which
            drawn = dict(zip(names, drawn.values(), strict=True))
        return {
            path or "action": _taken(path or "action", space, drawn)
            for path, space in leaves(self.action_space).items()
        }


def _example(leaf: Leaf) -> Tensor:
    """Two rows of what a leaf shows."""
    low = np.where(np.isfinite(leaf.low), leaf.low, 0)
    return torch.from_numpy(np.broadcast_to(low, (2, *(leaf.space.shape or ()))).astype(leaf.space.dtype))


def _counts(leaf: Leaf) -> list[int]:
    return [int(n) for n in np.ravel(np.asarray(leaf.high) - np.asarray(leaf.low) + 1)]


def _features(leaf: Leaf, shown: Tensor) -> Tensor:
    """What :meth:`Leaf.features` makes of it, ``[B, size]``."""
    if not isinstance(leaf.space, (spaces.Discrete, spaces.MultiDiscrete)):
        return shown.to(torch.float32).flatten(1)
    choices = (shown - torch.as_tensor(leaf.low)).reshape(shown.shape[0], -1)
    columns = zip(choices.unbind(1), _counts(leaf), strict=True)
    return torch.cat([(choice[:, None] == torch.arange(n)).to(torch.float32) for choice, n in columns], dim=-1)


def _part(leaf: Leaf, shown: Tensor) -> Tensor:
    """What :meth:`Leaf.encoded` makes of it."""
    assert leaf.part is not None
    if leaf.part.kind == "indices":
        return (shown - torch.as_tensor(leaf.low)).to(torch.int64)
    if leaf.axes is not None:
        whole = shown if shown.ndim > 3 else shown[:, None]
        shown = whole.permute(leaf.axes).reshape(shown.shape[0], *leaf.part.shape)
    return shown.to(torch.float32) if shown.dtype == torch.float64 else shown


def _taken(name: str, space: spaces.Space, drawn: Mapping[str, Tensor]) -> Tensor:
    """What :class:`ActionDecoder` makes of the heads of one leaf of the action space."""
    if isinstance(space, spaces.Discrete):
        return drawn[name] + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        choices = torch.stack([drawn[f"{name}_{i}"] for i in range(space.nvec.size)], dim=-1)
        return choices.reshape(choices.shape[0], *space.shape) + torch.as_tensor(space.start)
    if isinstance(space, spaces.MultiBinary):
        return drawn[name].to(torch.int8).reshape(drawn[name].shape[0], *space.shape)
    assert isinstance(space, spaces.Box)
    share = (1 + drawn[name].to(torch.float64).tanh()).reshape(drawn[name].shape[0], *space.shape) / 2
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    taken = low.double() + share * (high.double() - low.double())
    return taken.to(low.dtype).clamp(low, high)
