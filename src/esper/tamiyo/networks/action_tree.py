"""The action as a tree of dependent heads: the one place that defines the behaviour policy.

Shapes: N rows (any batch, flattened), H size of the core, K number of heads, D size of the hidden layer per head, S
slots, E size of a slot encoding, n choices of a head, C choices of all heads together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from esper.heads import Head, HeadTable
from esper.tamiyo.networks.checks import Masks
from esper.tamiyo.networks.config import ACTIVATIONS, NetworkConfig
from esper.tamiyo.networks.distributions import Bernoullis, Distribution, SquashedGaussian
from esper.tamiyo.networks.initialization import POLICY_GAIN, embedding, linear, stacked
from esper.tamiyo.networks.masked_categorical import MaskedCategorical, gumbel_noise, negative_plogp
from esper.tamiyo.networks.prospects import ProspectEncoder

Chooser = Callable[[str, Distribution, Tensor | None], Tensor]
"""Head name, its distribution, and bool ``[N, 1]`` rows in which it is used (``None``: all) → choices, int64 ``[N]`` of
a categorical head, ``[N, n]`` of any other."""


Noise = dict[str, Tensor]
"""What decides a draw, for every head: Gumbel noise of its choices or bits, of a Gaussian head normal numbers."""


def noise_for(
    heads: HeadTable,
    num_slots: int,
    rows: tuple[int, ...],
    device: torch.device,
    generator: torch.Generator | None,
) -> Noise:
    """All randomness of ``rows`` draws at once, ``[*rows, n]`` for each head (of bits ``2·n``)."""
    sizes = heads.sizes(num_slots)
    discrete = {h.name: sizes[h.name] * (1 if h.is_categorical else 2) for h in heads if h.kind != "gaussian"}
    numbers = {h.name: sizes[h.name] for h in heads if h.kind == "gaussian"}
    parts = list(gumbel_noise((*rows, sum(discrete.values())), device, generator).split(tuple(discrete.values()), -1))
    if numbers:
        normal = torch.randn((*rows, sum(numbers.values())), device=device, generator=generator)
        parts += normal.split(tuple(numbers.values()), dim=-1)
    return dict(zip((*discrete, *numbers), parts, strict=True))


def correlate(noise: Noise, heads: HeadTable, correlation: float) -> Noise:
    r"""Noise whose numbers stay similar from one step to the next, as exploration of a body that moves needs it.

    For every Gaussian head, along the first axis,

    .. math:: \epsilon_0 = \eta_0, \quad \epsilon_t = \rho \epsilon_{t-1} + \sqrt{1 - \rho^2} \eta_t

    with the noise given as η. Each ε is standard normal by itself, so that the log-probability of a choice, given what
    was seen, stays that of its head; what changes is how choices of different steps go together (Hollenstein, Martius
    and Piater, AAAI 2024, arXiv:2312.11091, who colour the noise of PPO; this is an autoregressive process of first
    order). Choices and bits are left as they are.

    Args:
        noise: Of T steps, ``[T, ..., n]`` for each head.
        heads: Whose noise it is.
        correlation: ρ, from 0 to below 1.

    Example:
        >>> heads = HeadTable((Head("push", num_choices=1, kind="gaussian"),))
        >>> correlate({"push": torch.tensor([[1.0], [0.0], [0.0]])}, heads, 0.5)["push"].flatten()
        tensor([1.0000, 0.5000, 0.2500])
    """
    result = dict(noise)
    for head in heads:
        if head.kind == "gaussian":
            steps = list(noise[head.name].unbind(0))
            for t in range(1, len(steps)):
                steps[t] = correlation * steps[t - 1] + math.sqrt(1 - correlation**2) * steps[t]
            result[head.name] = torch.stack(steps)
    return result


def sampled(noise: Noise) -> Chooser:
    """A chooser that draws from each distribution as ``noise`` decides."""
    return lambda name, distribution, used: distribution.sample(noise=noise[name])


def likeliest(name: str, distribution: Distribution, used: Bool[Tensor, "N 1"] | None) -> Tensor:
    """A chooser that takes the likeliest choice."""
    return distribution.mode()


def most_valuable(op: str, op_values_NO: Float[Tensor, "N O"], share: float) -> Chooser:
    """A chooser whose op has the greatest Q of those at least ``share`` times as probable as the likeliest.

    Every other head takes its likeliest choice (the rule of discrete BCQ, Fujimoto et al. 2019, arXiv:1910.01708: a
    critic is to be trusted only where the policy goes).
    """

    def choose(name: str, distribution: Distribution, used: Tensor | None) -> Tensor:
        if name != op:
            return distribution.mode()
        assert isinstance(distribution, MaskedCategorical)
        probable = distribution.probs >= share * distribution.probs.amax(-1, keepdim=True)
        return op_values_NO.masked_fill(~probable, -math.inf).argmax(-1)

    return choose


def stored(actions: Mapping[str, Tensor]) -> Chooser:
    """A chooser that repeats ``actions`` (``[N]`` or ``[N, n]`` per head); what an unused head stored is not read."""

    def choose(name: str, distribution: Distribution, used: Tensor | None) -> Tensor:
        choice = actions[name]
        if used is None:
            return choice
        return torch.where(used.squeeze(-1) if choice.ndim == 1 else used, choice, 0)

    return choose


class Layout(NamedTuple):
    """Where the choices of each head stand when those of all heads are laid side by side, ``[N, C]``."""

    starts_K: Tensor
    """Place of each head's first choice, int64 ``[K]``."""
    head_of_C: Tensor
    """The head that each choice belongs to, int64 ``[C]``."""

    def summed(self, x_NC: Shaped[Tensor, "N C"]) -> Shaped[Tensor, "N K"]:
        """Sums over the choices of each head, ``[N, K]``."""
        return x_NC.new_zeros(x_NC.shape[0], self.starts_K.shape[0]).index_add(1, self.head_of_C, x_NC)


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept must be fit for training, whoever asks for it first
def layout(sizes: tuple[int, ...], device: torch.device) -> Layout:
    """The layout of heads of these ``sizes``."""
    starts = (0, *accumulate(sizes[:-1]))
    head_of = [k for k, size in enumerate(sizes) for _ in range(size)]
    return Layout(torch.tensor(starts, device=device), torch.tensor(head_of, device=device))


@lru_cache(maxsize=256)
def only_first(choices: int, device: torch.device) -> Bool[Tensor, " n"]:
    """The mask of an unused head, bool ``[n]``: the first choice alone."""
    return torch.arange(choices, device=device) == 0


@dataclass
class Draw:
    """One pass through the tree: for each head its distribution, its choice, and where it is used.

    Where all heads are categorical, what is summed over choices is summed for all of them at once.
    """

    distributions: dict[str, Distribution] = field(default_factory=dict)
    choices: dict[str, Tensor] = field(default_factory=dict)
    """int64 ``[N]`` of a categorical head; ``[N, n]`` of any other."""
    used: dict[str, Tensor] = field(default_factory=dict)
    """bool ``[N, 1]`` per head; a head that is missing is used in every row."""

    @cached_property
    def categorical(self) -> list[MaskedCategorical] | None:
        """The distributions, if all are categorical."""
        found = [d for d in self.distributions.values() if isinstance(d, MaskedCategorical)]
        return found if len(found) == len(self.distributions) else None

    @cached_property
    def layout(self) -> Layout:
        """Where the choices of each head stand."""
        assert self.categorical is not None
        return layout(tuple(d.log_probs.shape[-1] for d in self.categorical), self.log_probs_NC.device)

    @cached_property
    def log_probs_NC(self) -> Float[Tensor, "N C"]:
        """Log-probabilities of all choices of all heads."""
        assert self.categorical is not None
        first, *others = [d.log_probs for d in self.categorical]
        return torch.cat([first, *others], dim=-1) if others else first

    @cached_property
    def choices_NK(self) -> Int[Tensor, "N K"]:
        """The choice of each head, where all are categorical."""
        return torch.stack(tuple(self.choices.values()), dim=-1)

    @cached_property
    def log_probs_NK(self) -> Float[Tensor, "N K"]:
        """Log-probability of each head's choice; exactly 0 where the head is unused."""
        if self.categorical is None:
            return torch.stack([d.log_prob(self.choices[name]) for name, d in self.distributions.items()], dim=-1)
        return self.log_probs_NC.gather(-1, self.choices_NK + self.layout.starts_K)

    def entropies_NK(self) -> Float[Tensor, "N K"]:
        """Entropy of each head, in nats; exactly 0 where the head is unused."""
        if self.categorical is None:
            return torch.stack([d.entropy() for d in self.distributions.values()], dim=-1)
        return self.layout.summed(negative_plogp(self.log_probs_NC))

    def could_matter_NK(self) -> Bool[Tensor, "N K"]:
        """Where each head is used and has more than one allowed choice, bool."""
        if self.categorical is None:
            return torch.stack([d.could_matter() for d in self.distributions.values()], dim=-1)
        return self.layout.summed((self.log_probs_NC > -torch.inf).long()) > 1


class HeadNetwork(nn.Module):
    """One head: its logits, its mask, and what its choice means for the ``later`` heads after it.

    The logits of a plain head are its output. A head over slots points: its logits are ``output · key(slot) / sqrt(E)``
    and later heads see the projected encoding of the chosen slot. Of numbers and bits later heads see a projection.

    Args:
        head: The row of the table.
        config: The sizes, and the table.
        later: Number of heads after this one; 0 if none of them is ever used together with this one.
    """

    def __init__(self, head: Head, config: NetworkConfig, later: int) -> None:
        super().__init__()
        self.name, self.kind, self.num_choices = head.name, head.kind, head.num_choices
        self.table, self.floor = config.heads, config.floors[head.name]
        self.key: nn.Linear | None = None
        self.conditioning: nn.Linear | nn.Embedding | None = None
        head_dim, slot_dim = config.head_dim, config.slot_dim
        if head.points_at_slots:
            self.key = linear(slot_dim, slot_dim, 1.0, bias=False)
            self.conditioning = stacked(slot_dim, (head_dim,) * later, 1.0) if later else None
        elif not head.is_categorical:
            self.conditioning = stacked(head.num_choices, (head_dim,) * later, 1.0) if later else None
        else:
            self.conditioning = embedding(head.num_choices, head_dim * later) if later else None
        users = self.table.users(self.name)
        self.users = tuple(users)
        rows = [[[choice in choices] for choices in users.values()] for choice in range(head.num_choices)]
        self.users_of = nn.Buffer(torch.tensor(rows), persistent=False) if users else None
        """bool ``[n, users, 1]``: which choice uses which of the heads that depend on it."""

    def distribution(
        self,
        output: Float[Tensor, "N out"],
        slots_NSE: Float[Tensor, "N S E"] | None,
        mask: Bool[Tensor, "N ..."] | None,
        draw: Draw,
    ) -> Distribution:
        """The distribution over what is allowed, given what was drawn before."""
        if self.kind == "gaussian":
            return SquashedGaussian(output, draw.used.get(self.name))
        if self.kind == "bernoulli":
            return Bernoullis(output, self._allowed(mask, draw, 2, output.device), self.floor, self.name)
        logits = output
        if self.key is not None:
            assert slots_NSE is not None
            keys_NSE = F.linear(slots_NSE, self.key.weight)
            logits = torch.bmm(keys_NSE, output.unsqueeze(-1)).squeeze(-1) * (1 / math.sqrt(keys_NSE.shape[-1]))
        allowed = self._allowed(mask, draw, logits.shape[-1], logits.device)
        return MaskedCategorical(logits, allowed, self.floor, self.name, check=False)

    def _allowed(self, mask: Tensor | None, draw: Draw, choices: int, device: torch.device) -> Tensor | None:
        """The mask for the choice the parent took, with the first choice alone where the head is unused.

        It is ``[N, n]`` of a categorical head, ``[N, n, 2]`` of a Bernoulli head: there every bit has 2 ``choices``.
        """
        if mask is not None:
            mask = self.table.allowed(self.name, mask, draw.choices)
        used_N1 = draw.used.get(self.name)
        if used_N1 is None:
            return mask
        first, used = only_first(choices, device), used_N1 if self.kind == "categorical" else used_N1[..., None]
        if mask is not None:
            return torch.where(used, mask, first)
        return used | (first if self.kind == "categorical" else first.expand(self.num_choices, choices))

    def condition(
        self,
        hidden: Float[Tensor, "N later_D"],
        choice_N: Shaped[Tensor, "N ..."],
        slots_NSE: Float[Tensor, "N S E"] | None,
        draw: Draw,
    ) -> Float[Tensor, "N later_D"]:
        """Mark which later heads the choice uses, and condition their hidden layers ``[N, later · D]`` on it."""
        if self.users_of is not None:
            for user, uses_N1 in zip(self.users, self.users_of[choice_N].unbind(1), strict=True):
                draw.used[user] = draw.used[user] & uses_N1 if user in draw.used else uses_N1
        if self.conditioning is None:
            return hidden
        if self.kind != "categorical":
            seen_Nn = SquashedGaussian.bounded(choice_N) if self.kind == "gaussian" else choice_N
            given = self.conditioning(seen_Nn.to(self.conditioning.weight.dtype))
        elif self.key is None:
            given = F.embedding(choice_N, self.conditioning.weight)
        else:
            assert slots_NSE is not None and isinstance(self.conditioning, nn.Linear)
            chosen_NE = slots_NSE[torch.arange(slots_NSE.shape[0], device=slots_NSE.device), choice_N]
            given = F.linear(chosen_NE, self.conditioning.weight, self.conditioning.bias)
        used_N1 = draw.used.get(self.name)
        return hidden + (given if used_N1 is None else given * used_N1)


class DescribedHead(NamedTuple):
    """A head whose choices are described, and the descriptions."""

    encoder: ProspectEncoder
    described_NSnE: Tensor
    """Encodings of the choices in every slot, float ``[N, S, n, E]``."""

    def logits(self, hidden_ND: Tensor, draw: Draw) -> Tensor:
        """What the descriptions add to the logits, ``[N, n]``, in the slot that has been drawn."""
        return self.encoder.logits(hidden_ND, self.described_NSnE, draw.choices[self.encoder.slot_head])


class ActionTree(nn.Module):
    """Draws the heads of a table in order, each conditioned on the core and on what was drawn before it.

    Rollout and learning both go through :meth:`draw`, and only what chooses differs, so that masks, floors, contexts
    and unused heads cannot disagree between them.

    The :class:`~esper.heads.HeadTable` says when a head is used, and what it may choose then. Where a head is unused
    its only allowed choice is 0 (and all numbers and bits are 0): hence action 0, log-probability and entropy exactly
    0, and no gradient. It conditions no later head.

    The hidden layers of all heads are one linear layer of the core. Each choice drawn adds its embedding to those of
    the heads after it, which is what a linear layer over (core, choices so far) computes. The output layers of all
    heads lie in one matrix, a block of rows per head: a row per choice or bit, and two per number, for its mean and its
    deviation.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        heads = config.heads
        self.hidden_sizes = (config.head_dim,) * len(heads)
        self.output_sizes = tuple(
            config.slot_dim if head.points_at_slots else head.num_choices * (2 if head.kind == "gaussian" else 1)
            for head in heads
        )
        self.hidden = stacked(config.core_dim, self.hidden_sizes)
        self.activation = ACTIVATIONS[config.activation]()
        self.output = stacked(config.head_dim, self.output_sizes, POLICY_GAIN)
        self.heads = nn.ModuleList()
        for index, head in enumerate(heads):
            after = heads[index + 1 :]
            later = len(after) if any(heads.together(head.name, h.name) for h in after) else 0
            self.heads.append(HeadNetwork(head, config, later))

    def draw(
        self,
        core_NH: Float[Tensor, "N H"],
        slots_NSE: Float[Tensor, "N S E"] | None,
        masks: Masks,
        choose: Chooser,
        described: DescribedHead | None = None,
    ) -> Draw:
        """Go through the heads in order; ``masks`` are ``[N, ...]`` as the table says, or ``None``."""
        draw = Draw()
        hidden = self.hidden(core_NH)
        weights = torch.split_with_sizes(self.output.weight, self.output_sizes)
        biases = torch.split_with_sizes(self.output.bias, self.output_sizes)
        for head, weight, bias in zip(self.heads, weights, biases, strict=True):
            assert isinstance(head, HeadNetwork)
            head_dim = weight.shape[-1]
            hidden_ND, hidden = torch.split_with_sizes(hidden, (head_dim, hidden.shape[-1] - head_dim), dim=-1)
            hidden_ND = self.activation(hidden_ND)
            output = F.linear(hidden_ND, weight, bias)
            if described is not None and head.name == described.encoder.head:
                output = output + described.logits(hidden_ND, draw)
            distribution = head.distribution(output, slots_NSE, masks[head.name], draw)
            choice_N = choose(head.name, distribution, draw.used.get(head.name))
            draw.distributions[head.name] = distribution
            draw.choices[head.name] = choice_N
            hidden = head.condition(hidden, choice_N, slots_NSE, draw)
        return draw

    def op(self, core_NH: Float[Tensor, "N H"], mask: Bool[Tensor, "N O"] | None) -> MaskedCategorical:
        """Distribution of the op alone, as in :meth:`draw`, where the op is categorical."""
        head = self.heads[0]
        assert isinstance(head, HeadNetwork)
        size, choices = self.hidden_sizes[0], self.output_sizes[0]
        hidden_ND = F.linear(core_NH, self.hidden.weight[:size], self.hidden.bias[:size])
        output = F.linear(self.activation(hidden_ND), self.output.weight[:choices], self.output.bias[:choices])
        distribution = head.distribution(output, None, mask, Draw())
        assert isinstance(distribution, MaskedCategorical)
        return distribution
