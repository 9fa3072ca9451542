"""Checks of what comes into the network: each error says what was expected, what came, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from esper.heads import HeadTable
from esper.tamiyo.networks.parts import Part

Masks = Mapping[str, Tensor | None]
"""Head → bool mask, True where allowed, or ``None`` (all allowed)."""

HiddenState = tuple[Float[Tensor, "layers B H"], Float[Tensor, "cells B H"]]
"""What a policy remembers: outputs and cells of its memory, a pair ``[num_layers, B, H]``, the layers of the critic's
own after the policy's. Of a GRU the second is empty, ``[0, B, H]``, and without memory both are."""


def check_state(
    name: str, state: Tensor, batch: tuple[str, ...], state_dim: int, *, dtype: torch.dtype, values: bool
) -> None:
    """``state`` is of type ``dtype`` and shape ``[*batch, state_dim]``; with ``values``, it is finite too."""
    if state.ndim != len(batch) + 1 or state.shape[-1] != state_dim or 0 in state.shape[:-1]:
        raise ValueError(f"expected {name} of shape [{', '.join(batch)}, {state_dim}], got {list(state.shape)}")
    if state.dtype != dtype:
        raise ValueError(f"expected {name} of type {dtype}, got {state.dtype}; use {name}.to({dtype})")
    if values:
        check_finite(name, state)


def check_parts(expected: Iterable[Part], parts: Mapping[str, Tensor], batch: torch.Size, *, values: bool) -> None:
    """``parts`` has every part that is expected, of its shape, with indices within what they may be."""
    names = [part.name for part in expected]
    if parts.keys() != set(names):
        raise ValueError(f"expected the parts {names} of the observation, got {list(parts)}")
    for part in expected:
        x = parts[part.name]
        indices = part.kind == "indices"
        if x.shape != (*batch, *part.shape) or (indices and x.dtype != torch.int64):
            raise ValueError(
                f"part '{part.name}': expected {'torch.int64' if indices else 'numbers'} of shape "
                f"{[*batch, *part.shape]}, got {x.dtype} {list(x.shape)}"
            )
        if values and indices:
            outside = (x < 0) | (x >= torch.tensor(part.choices, device=x.device).view(part.shape))
            if outside.any():
                raise ValueError(
                    f"part '{part.name}': an index must be from 0 to below {part.choices}, got {x[outside][0]}"
                )
        if values and x.is_floating_point():
            check_finite(f"part '{part.name}'", x)


def check_prospects(prospects: Tensor | None, batch: torch.Size, form: tuple[int, int, int], *, values: bool) -> None:
    """What describes choices is ``[..., S, n, P]``, of finite numbers; ``None`` where nothing is described."""
    if prospects is None:
        return
    if prospects.shape != (*batch, *form) or not prospects.is_floating_point():
        raise ValueError(
            f"expected prospects as numbers of shape {[*batch, *form]}, got {prospects.dtype} {list(prospects.shape)}"
        )
    if values:
        check_finite("prospects", prospects)


def check_finite(name: str, state: Tensor) -> None:
    """No element is NaN or infinite."""
    # A sum is finite unless an element is not, or it overflows: one cheap look, and a careful one only where needed.
    if not math.isfinite(state.sum().item()) and not torch.isfinite(state).all():
        row = (~torch.isfinite(state)).nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite, got {state[tuple(row)].item()} at index {row}; look at its source")


def check_recordable(kept: Iterable[tuple[str, Tensor | None]]) -> None:
    """No tensor (each with its name) was made in inference mode; for calls that record gradients."""
    for name, tensor in kept:
        if tensor is not None and tensor.is_inference():
            raise ValueError(
                f"{name} was made in inference mode, and gradients are being recorded, which PyTorch refuses; "
                "to decide without learning call this under torch.no_grad(), as LSTMPolicyBundle.act() does; "
                "to learn give a clone, made outside of inference mode: tensor.clone()"
            )


def check_blueprint_indices_given(blueprint_indices: Tensor | None, batch: tuple[str, ...], uses_slots: bool) -> None:
    """``blueprint_indices`` are there if the network has slots."""
    if uses_slots and blueprint_indices is None:
        raise ValueError(
            "blueprint_indices are missing: a network with slots reads the blueprint in each of them, "
            f"int64 [{', '.join(batch)}, S], -1 for none"
        )


def check_no_blueprint_indices(blueprint_indices: Tensor | None) -> None:
    """``blueprint_indices`` are not there, or empty, of a network without slots."""
    if blueprint_indices is not None and blueprint_indices.shape[-1] != 0:
        raise ValueError(
            f"expected no blueprint_indices for a network without slots, got {list(blueprint_indices.shape)}"
        )


def check_blueprint_indices(blueprint_indices: Tensor, batch: torch.Size, num_blueprints: int) -> None:
    """``blueprint_indices`` is int64 ``[*batch, S]`` from −1 (empty) to ``num_blueprints − 1``."""
    shape = blueprint_indices.shape
    if len(shape) != len(batch) + 1 or shape[:-1] != batch or shape[-1] == 0:
        raise ValueError(f"expected blueprint_indices of shape [{', '.join(map(str, batch))}, S], got {list(shape)}")
    if blueprint_indices.dtype != torch.int64:
        raise ValueError(f"expected blueprint_indices of type torch.int64, got {blueprint_indices.dtype}")
    low, high = (int(x) for x in torch.aminmax(blueprint_indices))
    if low < -1 or high >= num_blueprints:
        raise ValueError(
            f"blueprint_indices must be from -1 (empty slot) to {num_blueprints - 1}, got {low if low < -1 else high}"
        )


def check_masks(heads: HeadTable, masks: Masks, batch: torch.Size, num_slots: int) -> None:
    """``masks`` has every head, each ``None`` or bool ``[*batch, n]``, or ``[*batch, n_parent, n]`` with a parent.

    For a Bernoulli head one more dimension of 2 follows, and a Gaussian head has no mask.
    """
    if masks.keys() != set(heads.names):
        raise ValueError(
            f"expected a mask (or None) for each of the heads {list(heads.names)}, got {list(masks)}; "
            "None allows every choice of a head"
        )
    for head in heads:
        mask = masks[head.name]
        if mask is None:
            continue
        shapes = [[*batch, *shape] for shape in heads.mask_shapes(head.name, num_slots)]
        if not shapes:
            raise ValueError(
                f"head '{head.name}' is Gaussian, and numbers have no mask; give None, and say by used_when under "
                "which choices the head is used"
            )
        if mask.dtype != torch.bool or list(mask.shape) not in shapes:
            raise ValueError(
                f"head '{head.name}': expected a bool mask of shape {' or '.join(map(str, shapes))} (True = allowed), "
                f"got {mask.dtype} {list(mask.shape)}"
            )


def check_hidden(hidden: HiddenState, layers: tuple[int, int], size: tuple[int, int], dtype: torch.dtype) -> None:
    """``hidden`` is a pair of ``dtype`` tensors, of as many ``layers`` of ``size`` ``[B, H]`` each."""
    shapes = [(count, *size) for count in layers]
    if [tuple(part.shape) for part in hidden] != shapes or any(part.dtype != dtype for part in hidden):
        expected, got = [list(shape) for shape in shapes], [f"{part.dtype} {list(part.shape)}" for part in hidden]
        raise ValueError(f"expected hidden as a pair of {dtype} {expected}, got {got}; start from initial_hidden()")


def check_gaps(gaps: Tensor | None, batch: torch.Size) -> None:
    """``gaps`` is ``None`` or bool ``[*batch]``."""
    if gaps is not None and (gaps.dtype != torch.bool or gaps.shape != batch):
        raise ValueError(
            f"expected gaps of type torch.bool and shape {list(batch)}, got {gaps.dtype} {list(gaps.shape)}"
        )


def check_actions(actions: Mapping[str, Tensor], batch: torch.Size, heads: HeadTable, num_slots: int) -> None:
    """``actions`` has every head, each as its kind says.

    Categorical: int64 ``[*batch]`` within the head; Bernoulli: 0 or 1, int64 ``[*batch, n]``; Gaussian: floating point
    ``[*batch, n]``.
    """
    sizes = heads.sizes(num_slots)
    if actions.keys() != sizes.keys():
        raise ValueError(f"expected stored actions for the heads {list(sizes)}, got {list(actions)}")
    for name, action in actions.items():
        head = heads.named(name)
        shape = [*batch] if head.is_categorical else [*batch, sizes[name]]
        is_number = head.kind == "gaussian"
        if list(action.shape) != shape or not (
            action.is_floating_point() if is_number else action.dtype == torch.int64
        ):
            raise ValueError(
                f"head '{name}': expected actions of type {'floating point' if is_number else 'torch.int64'} and shape "
                f"{shape}, got {action.dtype} {list(action.shape)}"
            )
        if is_number:
            continue
        most = sizes[name] - 1 if head.is_categorical else 1
        low, high = (int(x) for x in torch.aminmax(action))
        if low < 0 or high > most:
            raise ValueError(f"head '{name}': a stored action must be from 0 to {most}, got {low if low < 0 else high}")
