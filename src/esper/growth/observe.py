"""What the policy sees of the one run that ``Growth`` follows: a batch of one, in memory and in a checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from esper.actions import HEAD_NAMES
from esper.network.growing_network import GrowingNetwork
from esper.network.history import History
from esper.observation import encode, encode_prospects
from esper.tamiyo.policy.protocol import Observation


def observe(run: History, network: GrowingNetwork) -> Observation:
    """The run as it is now."""
    reading = run.reading(network)
    features, blueprints = encode(reading)
    masks = network.masks()
    return {
        "features": features[None],
        "blueprints": blueprints[None],
        "prospects": encode_prospects(reading)[None],
        "action_mask": {name: masks[name][None] for name in HEAD_NAMES},
    }


def to_tensors(tree: Any) -> Any:
    """A nest of arrays as a nest of tensors, which ``torch.load(weights_only=True)`` reads."""
    return {k: to_tensors(v) for k, v in tree.items()} if isinstance(tree, dict) else torch.from_numpy(tree.copy())


def to_arrays(tree: Any) -> Any:
    """What was given to :func:`to_tensors`."""
    return {k: to_arrays(v) for k, v in tree.items()} if isinstance(tree, dict) else tree.numpy()
