"""The action as a tree of dependent heads: the one place that defines the behaviour policy.

Shapes: N rows (any batch, flattened), H size of the core, D size of a head's hidden layer, S slots, E size of a slot
encoding, n choices of a head, ``heads`` number of heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from esper.heads import Head, HeadTable
from esper.tamiyo.networks.checks import Masks
from esper.tamiyo.networks.initialization import POLICY_GAIN, embedding, linear
from esper.tamiyo.policy.masked_categorical import MaskedCategorical, gumbel_noise

Chooser = Callable[[str, MaskedCategorical, Tensor | None], Tensor]
"""Head name, its distribution, and bool ``[N]`` rows in which it is used (``None``: all) → choices int64 ``[N]``."""


def sampled(sizes: Mapping[str, int], rows: int, device: torch.device, generator: torch.Generator | None) -> Chooser:
    """A chooser that draws from each distribution; all randomness is drawn at once."""
    noise = gumbel_noise((rows, sum(sizes.values())), device, generator).split(tuple(sizes.values()), dim=-1)
    of_head = dict(zip(sizes, noise, strict=True))
    return lambda name, distribution, used: distribution.sample(noise=of_head[name])


def likeliest(name: str, distribution: MaskedCategorical, used: Tensor | None) -> Tensor:
    """A chooser that takes the likeliest choice."""
    return distribution.mode()


def stored(actions: Mapping[str, Tensor]) -> Chooser:
    """A chooser that repeats ``actions`` (int64 ``[N]`` a head); what is stored for an unused head is not read."""
    return lambda name, distribution, used: actions[name] if used is None else actions[name] * used


@dataclass(frozen=True)
class Draw:
    """One pass through the tree: for each head its distribution, its choice and where it is used."""

    distributions: dict[str, MaskedCategorical]
    choices: dict[str, Tensor]
    used: dict[str, Tensor | None]
    """bool ``[N]``; ``None`` where a head is used in every row."""

    def log_probs(self) -> dict[str, Tensor]:
        """Log-probability ``[N]`` of each head's choice; exactly 0 where the head is unused."""
        return {name: d.log_prob(self.choices[name]) for name, d in self.distributions.items()}

    def entropies(self) -> dict[str, Tensor]:
        """Entropy ``[N]`` of each head, in nats; exactly 0 where the head is unused."""
        return {name: d.entropy() for name, d in self.distributions.items()}

    def could_matter(self) -> dict[str, Tensor]:
        """Where each head is used and has more than one allowed choice, bool ``[N]``."""
        return {name: _has_a_choice(d) for name, d in self.distributions.items()}


def _has_a_choice(distribution: MaskedCategorical) -> Tensor:
    if distribution.mask is not None:
        return distribution.mask.sum(-1) > 1
    *rows, choices = distribution.log_probs.shape
    return torch.full(rows, choices > 1, device=distribution.log_probs.device)


class HeadNetwork(nn.Module):
    """Logits of one head from the core and the context (what was drawn before it).

    A head over slots points: its logits are ``query · slot / sqrt(E)``.
    """

    def __init__(self, head: Head, core_dim: int, head_dim: int, slot_dim: int, *, first: bool, last: bool) -> None:
        super().__init__()
        self.core = linear(core_dim, head_dim)
        self.context = None if first else linear(head_dim, head_dim, 1.0, bias=False)
        self.key: nn.Linear | None = None
        self.chosen: nn.Linear | nn.Embedding | None = None
        if head.points_at_slots:
            self.logits = linear(head_dim, slot_dim, POLICY_GAIN)
            self.key = linear(slot_dim, slot_dim, 1.0, bias=False)
            self.chosen = None if last else linear(slot_dim, head_dim, 1.0)
        else:
            self.logits = linear(head_dim, head.num_choices, POLICY_GAIN)
            self.chosen = None if last else embedding(head.num_choices, head_dim)

    def forward(self, core_NH: Tensor, context_ND: Tensor | None, slots_NSE: Tensor | None) -> Tensor:
        """Logits ``[N, n]``."""
        hidden_ND = self.core(core_NH)
        if self.context is not None:
            hidden_ND = hidden_ND + self.context(context_ND)
        logits = self.logits(torch.relu(hidden_ND))
        if self.key is None:
            return logits
        keys_NSE = self.key(slots_NSE)
        return (keys_NSE @ logits.unsqueeze(-1)).squeeze(-1) / math.sqrt(keys_NSE.shape[-1])

    def embed(self, choice_N: Tensor, slots_NSE: Tensor | None) -> Tensor | None:
        """What later heads see of a choice, ``[N, D]``: its embedding, or the projected encoding of the chosen slot."""
        if self.chosen is None:
            return None
        if self.key is None:
            return self.chosen(choice_N)
        assert slots_NSE is not None
        index = choice_N.view(-1, 1, 1).expand(-1, 1, slots_NSE.shape[-1])
        return self.chosen(slots_NSE.gather(1, index).squeeze(1))


class ActionTree(nn.Module):
    """Draws the heads of a table in order, each conditioned on the core and on what was drawn before it.

    Rollout and learning both go through :meth:`draw`, and only what chooses differs, so that masks, floors, contexts
    and unused heads cannot disagree between them.

    A head is used when every ancestor its ``used_when`` names took one of the choices named there, and its parent is
    used; an unused ancestor took no choice. Where a head is unused its only allowed choice is 0: hence action 0,
    log-probability and entropy exactly 0, and no gradient. It adds nothing to the context of later heads.
    """

    def __init__(
        self, heads: HeadTable, core_dim: int, head_dim: int, slot_dim: int, floors: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.table = heads
        self.floors = dict(floors)
        last = len(heads) - 1
        self.networks = nn.ModuleList(
            HeadNetwork(head, core_dim, head_dim, slot_dim, first=i == 0, last=i == last)
            for i, head in enumerate(heads)
        )
        self._users = _users(heads)
        for name, (_, table) in self._users.items():
            self.register_buffer(f"users_{heads.names.index(name)}", table, persistent=False)

    def draw(self, core_NH: Tensor, slots_NSE: Tensor | None, masks: Masks, choose: Chooser) -> Draw:
        """Go through the heads in order; ``masks`` are ``[N, n]``, ``[N, n_parent, n]`` or ``None``."""
        result = Draw({}, {}, {})
        context_ND: Tensor | None = None
        for head, network in zip(self.table, self.networks, strict=True):
            assert isinstance(network, HeadNetwork)
            name = head.name
            used_N = result.used.setdefault(name, None)
            logits = network(core_NH, context_ND, slots_NSE)
            mask = _given_parent(masks[name], result.choices.get(head.parent or ""))
            distribution = self._distribution(head, logits, _where_used(mask, used_N, logits))
            choice_N = choose(name, distribution, used_N)
            result.distributions[name] = distribution
            result.choices[name] = choice_N
            self._mark_users(name, choice_N, result.used)
            seen_ND = network.embed(choice_N, slots_NSE)
            if seen_ND is not None:
                seen_ND = seen_ND if used_N is None else seen_ND * used_N.unsqueeze(-1)
                context_ND = seen_ND if context_ND is None else context_ND + seen_ND
        return result

    def root(self, core_NH: Tensor, mask: Tensor | None) -> MaskedCategorical:
        """Distribution of the root head alone, as in :meth:`draw`."""
        return self._distribution(self.table.root, self.networks[0](core_NH, None, None), mask)

    def _distribution(self, head: Head, logits: Tensor, allowed: Tensor | None) -> MaskedCategorical:
        return MaskedCategorical(logits, allowed, self.floors[head.name], head.name, check=False)

    def _mark_users(self, name: str, choice_N: Tensor, used: dict[str, Tensor | None]) -> None:
        """Note in which rows the heads that depend on this choice are used."""
        if name not in self._users:
            return
        dependants, _ = self._users[name]
        table = self.get_buffer(f"users_{self.table.names.index(name)}")
        for dependant, used_N in zip(dependants, table.index_select(0, choice_N).unbind(-1), strict=True):
            before = used.get(dependant)
            used[dependant] = used_N if before is None else before & used_N


def _users(heads: HeadTable) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """For each head that others depend on: those heads, and bool ``[n, dependants]``, the choices that use them."""
    conditions: dict[str, dict[str, frozenset[int]]] = {}
    for head in heads:
        own = {ancestor: frozenset(int(c) for c in choices) for ancestor, choices in head.used_when.items()}
        for ancestor in (*own, head.parent) if head.parent else tuple(own):
            for name, choices in conditions[ancestor].items():
                own[name] = own.get(name, choices) & choices
        conditions[head.name] = own
    users = {}
    for head in heads:
        dependants = tuple(name for name, own in conditions.items() if head.name in own)
        if dependants:
            rows = [[c in conditions[name][head.name] for name in dependants] for c in range(head.num_choices)]
            users[head.name] = (dependants, torch.tensor(rows))
    return users


def _given_parent(mask: Tensor | None, parent_N: Tensor | None) -> Tensor | None:
    """The mask ``[N, n]`` for the choice the parent took."""
    if mask is None or mask.ndim == 2:
        return mask
    assert parent_N is not None
    return mask.gather(1, parent_N.view(-1, 1, 1).expand(-1, 1, mask.shape[-1])).squeeze(1)


def _where_used(mask: Tensor | None, used_N: Tensor | None, logits: Tensor) -> Tensor | None:
    """The mask, with the first choice alone where the head is unused."""
    if used_N is None:
        return mask
    only_first = torch.arange(logits.shape[-1], device=logits.device) == 0
    used_N1 = used_N.unsqueeze(-1)
    return used_N1 | only_first if mask is None else torch.where(used_N1, mask, only_first)
