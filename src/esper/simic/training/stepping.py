"""What following episodes step by step takes, whoever follows them.

Legend: K environments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from esper.simic.spaces import EnvironmentAdapter
from esper.tamiyo.networks.checks import HiddenState
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle, PolicyInput


def emptied(hidden: HiddenState, begins: Bool[np.ndarray, " K"]) -> HiddenState:
    """The hidden state before the next step: zero where that ``begins`` ([K] bool) an episode."""
    if not begins.any():
        return hidden
    empty = torch.from_numpy(begins).to(hidden[0].device)[None, :, None]
    return hidden[0].masked_fill(empty, 0.0), hidden[1].masked_fill(empty, 0.0)


def value(policy: LSTMPolicyBundle, inputs: PolicyInput, hidden: HiddenState) -> Float[Tensor, " K"]:
    """V, [K]."""
    return policy.get_value(inputs.features, hidden, inputs.blueprint_indices, inputs.masks, inputs.parts)


def final_values(
    policy: LSTMPolicyBundle,
    adapter: EnvironmentAdapter,
    hidden: HiddenState,
    cut: Bool[np.ndarray, " K"],
    infos: Mapping[str, Any],
    change: Callable[[PolicyInput, np.ndarray], PolicyInput] | None = None,
) -> Float[Tensor, " K"] | None:
    """V of the final observation where an episode was ``cut`` ([K] bool) by a time limit, [K]; 0 elsewhere.

    ``None`` where no episode was.

    Args:
        policy: The policy.
        adapter: Between the environments and the policy.
        hidden: After the last step.
        cut: Truncated and not terminated.
        infos: After the last step, under same-step autoreset.
        change: What the policy is to see instead, of what it would see in the given rows.
    """
    if not cut.any():
        return None
    rows = np.flatnonzero(cut)
    inputs = adapter.encode_final(infos, rows)
    if change is not None:
        inputs = change(inputs, rows)
    values = torch.zeros(len(cut), dtype=policy.network.dtype, device=adapter.device)
    values[rows] = value(policy, inputs, (hidden[0][:, rows], hidden[1][:, rows]))
    return values
