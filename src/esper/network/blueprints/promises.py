"""What every blueprint promises, tried on small examples.

A broken promise does not crash: a seed that is not the identity at birth disturbs the host, one with batch statistics
means another thing in evaluation, one that looks ahead reads the labels of a language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from esper.network.blueprints.blueprint import KINDS, Blueprint, Kind, SlotSpec

_EXAMPLES: dict[Kind, tuple[SlotSpec, ...]] = {
    "vector": (SlotSpec("vector", 16),),
    "sequence": (SlotSpec("sequence", 16, (6,)), SlotSpec("sequence", 16, (6,), causal=True)),
    "image": (SlotSpec("image", 16, (6, 5)),),
}
_BATCH = 3


def check_promises(kind: type[Blueprint]) -> None:
    """Try a blueprint on every kind of slot that it says it fits.

    Raises:
        ValueError: For one that fits nothing, or breaks a promise; the message says which, where, and what to do.
    """
    if not kind.kinds <= set(KINDS):
        raise ValueError(f"blueprint '{kind.name}': `kinds` must be some of {', '.join(KINDS)}, got {set(kind.kinds)}")
    specs = [spec for each in KINDS for spec in _EXAMPLES[each] if kind.fits(spec)]
    if not specs:
        raise ValueError(f"blueprint '{kind.name}' fits none of the slots of 16 channels that it was tried in")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for spec in specs:
            where = f"blueprint '{kind.name}' in {'a causal' if spec.causal else 'a'} {spec.kind} slot of 16 channels: "
            try:
                blueprint = kind(spec)
                broken = _broken(blueprint, spec)
            except Exception as error:
                raise ValueError(f"{where}it fails: {type(error).__name__}: {error}") from error
            if broken is not None:
                raise ValueError(where + broken)


def _broken(blueprint: Blueprint, spec: SlotSpec) -> str | None:
    """The first promise that does not hold, in words."""
    if list(blueprint.buffers()):
        return f"it has buffers ({', '.join(n for n, _ in blueprint.named_buffers())}); a seed has parameters alone"
    h = torch.randn(spec.shape(_BATCH))
    delta = blueprint(h)
    if delta.shape != h.shape:
        return f"from h {list(h.shape)} it makes delta {list(delta.shape)}; expected the same shape"
    if bool(delta.any()):
        return "delta is not 0 at birth; set the weights of its last layer to zero (nn.init.zeros_)"
    delta.sum().backward()
    if not any(p.grad is not None and bool(p.grad.any()) for p in blueprint.parameters()):
        return "no gradient reaches it at birth; only its last layer is to be zero"
    for parameter in blueprint.parameters():
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        return _about_others(blueprint, spec, h)


def _about_others(blueprint: Blueprint, spec: SlotSpec, h: Tensor) -> str | None:
    """Of a blueprint whose weights have moved: what it may not depend on."""
    delta = blueprint.train()(h)
    if not torch.equal(blueprint(h), delta) or not _close(blueprint.eval()(h), delta):
        return "it answers differently when called again, or in evaluation; leave out dropout and batch statistics"
    if not _close(torch.cat([blueprint(one[None]) for one in h]), delta):
        return "a sample's delta depends on the other samples of the batch"
    if spec.kind != "sequence":
        return None
    first_changed, last_changed = h.clone(), h.clone()
    first_changed[:, 0] += 1.0
    last_changed[:, -1] += 1.0
    reaches_back = not _close(blueprint(last_changed)[:, :-1], delta[:, :-1])
    if spec.causal and reaches_back:
        return "delta depends on later positions; pad or mask, or let `fits` say no to `spec.causal`"
    mixes = reaches_back or not _close(blueprint(first_changed)[:, 1:], delta[:, 1:])
    if mixes and not blueprint.mixes:
        return "delta at a position depends on others; say `mixes = True`, and let forward take `keep` (padding)"
    if blueprint.mixes:
        keep = torch.ones(h.shape[:2], dtype=torch.bool)
        keep[:, -1] = False
        if not _close(blueprint(last_changed, keep)[:, :-1], blueprint(h, keep)[:, :-1]):
            return "delta depends on positions at which `keep` is false (padding)"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
