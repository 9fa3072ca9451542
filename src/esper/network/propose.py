"""Slots for a host that nobody has named slots for: ``slots="auto"``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import nn

from esper.network.example import tensors_of
from esper.network.survey import Surveyor

MOST_SLOTS = 6
"""More are not proposed: a controller that has to look everywhere decides slowly."""

LEAST_CHANNELS = 4

_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardswish)


@dataclass
class _Candidate:
    """A submodule that ran once and put out a tensor that can be a slot."""

    name: str
    module: nn.Module
    rank: int
    shape: tuple[int, ...]
    is_answer: bool
    """It puts out what the model puts out."""

    @property
    def series(self) -> str:
        """The name without the number at its end: that of all blocks that stand side by side."""
        return self.name.rstrip("0123456789")

    @property
    def is_block(self) -> bool:
        return any(True for _ in self.module.children())


def propose_slots(model: nn.Module, example_input: Any) -> list[str]:
    """Names of up to six submodules whose outputs are good places to grow, in the order of execution.

    The first of these rules that finds any decides: numbered blocks of one class (the stages of a ResNet, the layers of
    a transformer, those of encoder and decoder alike), the outermost ones; two activations or more; other submodules.
    Those that cannot be slots (see :func:`~esper.network.survey.survey`), have fewer than four channels, or put out
    what the model puts out, are left alone.

    Raises:
        ValueError: If there is none.

    Example:
        >>> import torch
        >>> host = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> propose_slots(host, torch.zeros(1, 4))
        ['1', '3']
    """
    candidates, refusals = _candidates(model, example_input)
    rules = (_repeated_blocks, _activations, _outermost)
    chosen = next(filter(None, ([c for c in rule(candidates) if not c.is_answer] for rule in rules)), [])
    if not chosen:
        why = f" (of '{next(iter(refusals))}': {next(iter(refusals.values()))})" if refusals else ""
        raise ValueError(
            f"found no slot in {type(model).__name__}: no submodule runs once and outputs one floating tensor [N, C], "
            f"[N, L, C] or [N, C, H, W] of {LEAST_CHANNELS} channels or more{why}; name slots as in "
            "model.named_modules()"
        )
    return [c.name for c in _spread(sorted(chosen, key=lambda c: c.rank))]


def _candidates(model: nn.Module, example_input: Any) -> tuple[list[_Candidate], dict[str, str]]:
    """Submodules that can be slots, and what is said of those that cannot."""
    surveyor = Surveyor(model, example_input)
    answers = (t for _, t in tensors_of(surveyor.outputs[""][0]) if t.is_floating_point() and t.dim() > 0)
    answer = next((t.data_ptr() for t in answers), None)
    found, refusals = [], {}
    for rank, name in enumerate(surveyor.outputs):
        if not name or "parametrizations" in name.split("."):
            continue
        try:
            site = surveyor.site(name, depth=0.0, causal=False)
        except ValueError as error:
            refusals[name] = str(error)
            continue
        tensor = site.port.read(surveyor.outputs[name][0])
        if site.spec.channels >= LEAST_CHANNELS:
            is_answer = tensor.data_ptr() == answer
            found.append(_Candidate(name, site.module, rank, tuple(tensor.shape), is_answer))
    return found, refusals


def _repeated_blocks(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Blocks of one class and one name but for its number, in all parts of the model; the outermost ones."""
    groups: dict[tuple[str, type], list[_Candidate]] = defaultdict(list)
    for c in candidates:
        if c.is_block:
            groups[c.series, type(c.module)].append(c)
    repeated = [c for group in groups.values() if len(group) > 1 for c in group]
    names = {c.name for c in repeated}
    return [c for c in repeated if not any(c.name.startswith(f"{name}.") for name in names)]


def _activations(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    found = [c for c in candidates if isinstance(c.module, _ACTIVATIONS)]
    return found if len(found) > 1 else []


def _outermost(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Submodules that stand in no other candidate; of those in a row with outputs of one shape, the last."""
    names = {c.name for c in candidates}
    outer = [c for c in candidates if not any(c.name.startswith(f"{name}.") for name in names)]
    if len(outer) == 1 and len(candidates) > 1:  # a body of which the model is made: what is in it
        return _outermost([c for c in candidates if c is not outer[0]])
    outer.sort(key=lambda c: c.rank)
    followed = zip_longest(outer, outer[1:])
    return [c for c, after in followed if c.is_block or after is None or after.shape != c.shape]


def _spread(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """At most :data:`MOST_SLOTS` of them, evenly, the last one included."""
    if len(candidates) <= MOST_SLOTS:
        return list(candidates)
    step = len(candidates) / MOST_SLOTS
    return [candidates[round((i + 1) * step) - 1] for i in range(MOST_SLOTS)]
