"""Where rollouts are kept, and how they become padded sequences for the update.

Legend: T steps, K environments, H heads, B lines of a batch, L their length, D features, S slots.

A recurrent policy learns from sequences that begin with the hidden state they had in the rollout. An episode that
ends inside the rollout ends its sequence, and the next one begins with its own state.

Sequences have many lengths, and a batch is a rectangle. Padding each to the longest wastes most of it when episodes are
short; so sequences that begin with an episode, with an empty memory, may also follow others in the same line, after a
gap of one row that empties it (:meth:`FactoredRecurrentActorCritic.evaluate_actions`). Lines of few different lengths
also matter for speed: oneDNN compiles its LSTM kernels anew for every shape. Whatever the layout, what is learned is
the same, and the update has no Python loop over time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from esper.heads import Head, HeadTable
from esper.simic.advantages import Advantages, compute_advantages, mean_of_others
from esper.tamiyo.networks.checks import HiddenState, Masks
from esper.tamiyo.networks.factored_lstm import Core, Judged
from esper.tamiyo.policy.lstm_bundle import PolicyInput


@dataclass
class Transition:
    """One step of K environments, as the collector saw it."""

    inputs: PolicyInput
    hidden: HiddenState
    """HiddenState state *before* the step, zero where an episode begins."""
    actions: dict[str, Tensor]
    """{head: [K] int64}, of heads that are not categorical [K, n]."""
    core: Core
    """What the policy made of the inputs."""
    rewards: np.ndarray
    """[K] float."""
    terminated: np.ndarray
    """[K] bool."""
    truncated: np.ndarray
    """[K] bool."""
    episode_starts: np.ndarray
    """[K] bool: the step is the first of its episode."""
    valid: np.ndarray
    """[K] bool: False where the step belongs to no episode (the reset row of next-step autoreset)."""
    final_values: Tensor | None = None
    """[K]: V of the final observation where same-step autoreset followed a truncation; ``None`` where it did not. Under
    next-step autoreset the next row holds the final observation, and so its value."""


_FLAGS = ("terminated", "truncated", "episode_starts", "valid")

_PART, _MASK, _NUMBERS = "part/", "mask/", "numbers"

_LINE_UNIT = 8
"""Packed lines have a multiple of this many rows, for the sake of few shapes."""


class SequenceBatch(NamedTuple):
    """B lines of length L with one or more sequences each. Padding allows every choice and is not ``valid``."""

    inputs: PolicyInput
    """features [B, L, D], blueprint_indices [B, L, S], masks {head: [B, L, ...] or None}."""
    hidden: HiddenState
    """The stored hidden state each line begins with, [layers, B, width]."""
    actions: dict[str, Tensor]
    """{head: [B, L] int64}, of heads that are not categorical [B, L, n]."""
    log_probs: Tensor
    """[B, L, H], of the stored actions at rollout time."""
    advantages: Tensor
    """[B, L, H]: A_op for the first head, A_sub for the others."""
    chosen_values: Tensor
    """[B, L], Q(s, stored op) at rollout time."""
    targets: Tensor
    """[B, L], what Q(s, stored op) learns."""
    valid: Tensor
    """[B, L] bool."""
    could_matter: Tensor
    """[B, L, H] bool: the row is valid, its action uses the head, and more than one choice was allowed."""
    gaps: Tensor | None
    """[B, L] bool: padding that empties the memory; ``None`` where every line holds a single sequence."""


class RolloutBuffer:
    """T steps of K environments, as plain detached copies in storage of its own.

    Steps are kept as they come until there are T of them; then all are *copied* into a few large tensors. So a finished
    buffer can hold no autograd graph and no inference tensor, however the rollout was made, and hidden states taken
    from it never tie two episodes together.

    Args:
        num_steps: T.
        num_envs: K.
        heads: The policy's heads.

    Call :meth:`add` T times, then :meth:`close` and :meth:`finish`; the next rollout takes a buffer of its own.
    """

    def __init__(self, num_steps: int, num_envs: int, heads: HeadTable) -> None:
        self.num_steps, self.num_envs, self.heads = num_steps, num_envs, heads
        self._numbers = {name: np.zeros((num_steps, num_envs), np.float32) for name in ("rewards",)}
        self._numbers |= {name: np.zeros((num_steps, num_envs), bool) for name in _FLAGS}
        self.advantages: Advantages | None = None
        self._steps: list[Transition] = []
        self._rows: dict[str, Tensor] = {}
        self._masks: dict[str, Tensor] = {}
        self._shared: Tensor | None = None
        self._could_matter: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        """The stored rows [T, K, ...] called ``name``.

        Names: ``features``, ``part/{name}`` for each part of the observation, ``actions`` [T, K, H] (where not all
        heads are categorical the numbers of one head after those of the other, float64), ``log_probs`` and
        ``entropies`` [T, K, H], ``chosen_values``, ``state_values``, ``rewards``, ``terminated``, ``truncated``,
        ``episode_starts``, ``valid``, ``hidden_0`` and ``hidden_1`` [T, layers, K, width]; with slots
        ``blueprint_indices``; where same-step autoreset followed a truncation ``final_values``; where another policy
        drew the actions ``likelihood_ratios``.
        """
        return self._rows[name]

    # ------------------------------------------------------------------ storing

    def add(self, transition: Transition) -> None:
        """Keep one step; its numbers are copied, its tensors are taken over and not to be changed before :meth:`close`.

        Raises:
            ValueError: When the buffer is full, or a number of a step is of another type or not one for each
                environment.
        """
        position = len(self._steps)
        if position == self.num_steps:
            raise ValueError(f"the buffer already holds its {self.num_steps} steps; the next rollout takes another")
        for name, rows in self._numbers.items():
            given = getattr(transition, name)
            if given.shape != (self.num_envs,) or given.dtype.kind != rows.dtype.kind:
                kind = "bool" if rows.dtype == bool else "floating point"
                raise ValueError(
                    f"'{name}': expected {kind} of shape ({self.num_envs},), one per environment, "
                    f"got {given.dtype} {given.shape}"
                )
            rows[position] = given
        self._steps.append(transition)

    # ------------------------------------------------------------------ after the last step

    def close(self, judge: Callable[[Core, dict[str, Tensor], Masks], Judged]) -> None:
        """Lay all steps side by side, and have them judged.

        Args:
            judge: Of the policy, see :meth:`LSTMPolicyBundle.judge`.

        Raises:
            ValueError: Before the last step, or when the tensors of a step differ in shape or type from those of the
                step before.
        """
        steps = self._steps
        if len(steps) != self.num_steps:
            raise ValueError(f"expected {self.num_steps} steps before close(), got {len(steps)}")
        device = steps[0].inputs.features.device
        with torch.inference_mode(False), torch.no_grad():
            self._rows = {name: torch.from_numpy(rows.copy()).to(device) for name, rows in self._numbers.items()}
            parts = [self._tensors(step) for step in steps]
            self._rows |= {name: _stacked(name, [part[name] for part in parts]) for name in parts[0]}
            self._rows |= self._final_values()
            self._masks = self._stacked_masks()
            judged = judge(
                Core.joined([step.core for step in steps]),
                {head: x.flatten(0, 1) for head, x in _by_head(self.heads, self["actions"]).items()},
                {head: self._masks[head].flatten(0, 1) if head in self._masks else None for head in self.heads.names},
            )
            shape = (self.num_steps, self.num_envs)
            self._rows |= {
                "log_probs": judged.log_probs.view(*shape, -1).clone(),
                "entropies": judged.entropies.view(*shape, -1).clone(),
                "chosen_values": judged.value.view(shape).clone(),
                "state_values": judged.state_value.view(shape).clone(),
            }
        self._steps = []

    def _tensors(self, step: Transition) -> dict[str, Tensor]:
        tensors = {
            "features": step.inputs.features,
            "actions": _side_by_side(self.heads, step.actions),
            "hidden_0": step.hidden[0],
            "hidden_1": step.hidden[1],
        }
        tensors |= {_PART + name: part for name, part in step.inputs.parts.items()}
        if step.inputs.blueprint_indices is not None:
            tensors["blueprint_indices"] = step.inputs.blueprint_indices
        return tensors

    def _final_values(self) -> dict[str, Tensor]:
        given = {t: step.final_values for t, step in enumerate(self._steps) if step.final_values is not None}
        values = self["rewards"].new_zeros(self.num_steps, self.num_envs)
        for t, final in given.items():
            values[t] = final
        return {"final_values": values} if given else {}

    def _stacked_masks(self) -> dict[str, Tensor]:
        """Of the heads that have had one; what had none allows everything."""
        masks = {}
        for head in self.heads.names:
            given = [step.inputs.masks[head] for step in self._steps]
            example = next((mask for mask in given if mask is not None), None)
            if example is not None:
                free = torch.ones_like(example)
                masks[head] = _stacked(f"mask of {head}", [free if mask is None else mask for mask in given])
        return masks

    def weigh(self, likelihood_ratios: Float[Tensor, "T K"]) -> None:
        """Say that another policy μ drew the actions: π/μ of each, [T, K]."""
        self._rows["likelihood_ratios"] = likelihood_ratios

    def finish(
        self,
        last_values: Float[Tensor, " K"],
        gamma: float,
        gae_lambda: float,
        reward_scale: float = 1.0,
        *,
        paired: bool = False,
    ) -> None:
        """Compute the advantages of the whole rollout.

        Args:
            last_values: V of the state that followed the last step, [K].
            gamma: Discount per step.
            gae_lambda: λ of GAE.
            reward_scale: What rewards are multiplied with before the critic learns them.
            paired: The environments share their luck; see :func:`esper.simic.advantages.mean_of_others`.
        """
        if "log_probs" not in self._rows:
            raise ValueError("expected close() before finish()")
        with torch.inference_mode(False), torch.no_grad():
            self.advantages = self._advantages(last_values.clone(), gamma, gae_lambda, reward_scale)
            self._shared = mean_of_others(self.advantages.op, self["valid"]) if paired else None

    def _advantages(self, last_values: Tensor, gamma: float, gae_lambda: float, reward_scale: float) -> Advantages:
        next_values = torch.cat([self["state_values"][1:], last_values[None]])
        if "final_values" in self._rows:
            next_values = torch.where(self["truncated"], self["final_values"], next_values)
        return compute_advantages(
            rewards=self["rewards"] * reward_scale,
            state_values=self["state_values"],
            chosen_values=self["chosen_values"],
            next_values=next_values,
            terminated=self["terminated"],
            truncated=self["truncated"],
            valid=self["valid"],
            gamma=gamma,
            gae_lambda=gae_lambda,
            likelihood_ratios=self._rows.get("likelihood_ratios"),
        )

    # ------------------------------------------------------------------ what the heads had to choose from

    def num_allowed(self) -> Shaped[Tensor, "T K H"]:
        """How many choices each head had, [T, K, H], given the choice its parent took.

        Of a Bernoulli head 2 to the number of free bits. Of n numbers 2^n, the volume they may lie in: its logarithm is
        their greatest entropy, as it is of choices.
        """
        counts = []
        choices = _by_head(self.heads, self["actions"])
        for head in self.heads:
            mask = self._masks.get(head.name)
            if mask is None:
                size = head.num_choices or self["blueprint_indices"].shape[-1]
                shape = choices[head.name].shape[:2]
                full = torch.full(shape, size, device=self["valid"].device)
                counts.append(full if head.is_categorical else 2.0**full)
                continue
            count = self.heads.allowed(head.name, mask, choices).sum(-1)
            counts.append(count if head.is_categorical else 2.0 ** (count > 1).sum(-1))
        return torch.stack(counts, dim=-1)

    @property
    def could_matter(self) -> Bool[Tensor, "T K H"]:
        """[T, K, H] bool: the row is valid, its action uses the head, and more than one choice was allowed."""
        if self._could_matter is None:
            choices = _by_head(self.heads, self["actions"])
            used = torch.stack([self.heads.is_used(name, choices) for name in self.heads.names], dim=-1)
            self._could_matter = self["valid"][..., None] & used & (self.num_allowed() > 1)
        return self._could_matter

    def head_advantages(self) -> Float[Tensor, "T K H"]:
        """[T, K, H]: A_op for the first head, A_sub for the others.

        Those of paired environments are taken over what the others have at the same step. Where another policy drew the
        actions they carry the weight min(1, π/μ) (Espeholt et al. 2018, https://arxiv.org/abs/1802.01561).
        """
        assert self.advantages is not None, "finish() computes the advantages"
        sub = [self.advantages.sub] * (len(self.heads) - 1)
        advantages = torch.stack([self.advantages.op, *sub], dim=-1)
        if self._shared is not None:
            advantages -= self._shared[..., None]
        if "likelihood_ratios" in self._rows:
            advantages *= self["likelihood_ratios"].clamp(max=1)[..., None]
        return advantages

    # ------------------------------------------------------------------ sequences

    def sequences(self, max_length: int | None = None) -> Sequences:
        """The rollout cut at every episode start, at rows that are not valid, and every ``max_length`` steps."""
        valid = self["valid"].T
        time = torch.arange(self.num_steps, device=valid.device).expand_as(valid)
        after_gap = torch.ones_like(valid)
        after_gap[:, 1:] = ~valid[:, :-1]
        begins = valid & (self["episode_starts"].T | after_gap)
        if max_length is not None:
            began = torch.where(begins, time, 0).cummax(dim=1).values
            begins = valid & ((time - began) % max_length == 0)
        environment, start = begins.nonzero(as_tuple=True)
        # Rows of one sequence are contiguous, so the running count of beginnings numbers them.
        number = begins.flatten().cumsum(0) - 1
        length = torch.bincount(number[valid.flatten()], minlength=len(start))
        return Sequences(
            rollout=self,
            rows=self._learning_rows(),
            environment=environment,
            start=start,
            length=length,
            begins_episode=self["episode_starts"][start, environment],
        )

    def _learning_rows(self) -> dict[str, Tensor]:
        """What an update reads of every row, [T·K, ...]; numbers that are read together lie together."""
        assert self.advantages is not None, "finish() comes before the update"
        of_rows = torch.stack([self["chosen_values"], self.advantages.targets], dim=-1)
        numbers = (self["log_probs"], self.head_advantages(), of_rows)
        rows = {
            _NUMBERS: torch.cat(numbers, dim=-1),
            "could_matter": self.could_matter,
            "features": self["features"],
            "actions": self["actions"],
        }
        rows |= {name: x for name, x in self._rows.items() if name.startswith(_PART) or name == "blueprint_indices"}
        rows |= {_MASK + head: mask for head, mask in self._masks.items()}
        return {name: x.flatten(0, 1) for name, x in rows.items()}

    def gather(self, rows: Mapping[str, Tensor], layout: Layout) -> SequenceBatch:
        """The ``rows`` of this rollout in the given layout."""
        environment, step = layout.environment, layout.step
        row = (step.clamp(min=0) * self.num_envs + environment).flatten()

        def take(name: str) -> Tensor:
            return rows[name].index_select(0, row).unflatten(0, step.shape)

        padding = step < 0

        def padded(name: str, fill: float) -> Tensor:
            taken = take(name)
            if layout.is_full:
                return taken
            return taken.masked_fill(padding.view(*padding.shape, *[1] * (taken.dim() - 2)), fill)

        heads = len(self.heads)
        numbers = torch.split_with_sizes(take(_NUMBERS), (heads, heads, 1, 1), dim=-1)
        log_probs, advantages, chosen_values, targets = numbers
        first = (step[:, 0], slice(None), environment[:, 0])
        return SequenceBatch(
            inputs=PolicyInput(
                features=padded("features", 0.0),
                blueprint_indices=padded("blueprint_indices", -1) if "blueprint_indices" in rows else None,
                masks={h: padded(_MASK + h, True) if h in self._masks else None for h in self.heads.names},
                parts={n.removeprefix(_PART): padded(n, 0) for n in rows if n.startswith(_PART)},
            ),
            hidden=(
                self["hidden_0"][first].transpose(0, 1).contiguous(),
                self["hidden_1"][first].transpose(0, 1).contiguous(),
            ),
            actions=_by_head(self.heads, padded("actions", 0)),
            log_probs=log_probs,
            advantages=advantages,
            chosen_values=chosen_values.squeeze(-1),
            targets=targets.squeeze(-1),
            valid=~padding,
            could_matter=padded("could_matter", False),
            gaps=padding if layout.packed else None,
        )


def _stacked(name: str, steps: Sequence[Tensor]) -> Tensor:
    """[T, ...]; raises ValueError where a step differs from the first."""
    first = steps[0]
    for step in steps:
        if step.shape != first.shape or step.dtype != first.dtype:
            raise ValueError(
                f"'{name}': expected {first.dtype} of shape {tuple(first.shape)} as before, "
                f"got {step.dtype} {tuple(step.shape)}"
            )
    return torch.stack(list(steps))


def _side_by_side(heads: HeadTable, actions: Mapping[str, Tensor]) -> Shaped[Tensor, "K W"]:
    """The actions of all heads in one tensor, in the order of the table; float64 holds choices and numbers exactly."""
    if all(head.is_categorical for head in heads):
        return torch.stack([actions[name] for name in heads.names], dim=-1)
    return torch.cat([actions[h.name].double().view(-1, _width(h)) for h in heads], dim=-1)


def _by_head(heads: HeadTable, actions: Shaped[Tensor, "*batch W"]) -> dict[str, Tensor]:
    """The actions of each head, [...] or [..., n], from what :func:`_side_by_side` made."""
    parts = actions.split([_width(head) for head in heads], dim=-1)
    as_drawn = {h.name: x if h.kind == "gaussian" else x.long() for h, x in zip(heads, parts, strict=True)}
    return {h.name: as_drawn[h.name].squeeze(-1) if h.is_categorical else as_drawn[h.name] for h in heads}


def _width(head: Head) -> int:
    return 1 if head.is_categorical else head.num_choices


class Layout(NamedTuple):
    """Where each row of a batch of B lines comes from."""

    environment: Tensor
    """[B, L]."""
    step: Tensor
    """[B, L], step of the rollout; −1 for padding."""
    packed: bool
    """Whether a line may hold several sequences."""
    is_full: bool
    """Whether there is no padding."""


class Sequences(NamedTuple):
    """Where the sequences of one rollout lie; N of them."""

    rollout: RolloutBuffer
    rows: dict[str, Tensor]
    """What an update reads of the rollout, [T·K, ...]."""
    environment: Tensor
    """[N]."""
    start: Tensor
    """[N], step of the rollout."""
    length: Tensor
    """[N]."""
    begins_episode: Tensor
    """[N] bool: the sequence begins with an episode, so with an empty memory."""

    def batch(self, chosen: Int[Tensor, " chosen"]) -> SequenceBatch:
        """The chosen sequences (indices into them) as one batch, in the layout that has fewer rows."""
        count, width = len(chosen), int(self.length[chosen].max())
        layouts = [(list(range(count)), [0] * count, width, False)]
        if count * width > int(self.length[chosen].sum()):
            layouts.append((*self._pack(chosen), True))
        lines, offsets, width, packed = min(layouts, key=lambda layout: (1 + max(layout[0])) * layout[2])
        return self.rollout.gather(self.rows, self._lay_out(chosen, lines, offsets, width, packed=packed))

    def _pack(self, chosen: Tensor) -> tuple[list[int], list[int], int]:
        """Line and offset of each chosen sequence, with a gap of one row between two in a line, and the lines' length.

        Only a sequence that begins with an empty memory can follow another. There are as many lines as sequences of the
        greatest length would fill; the longest goes first, each to the line with the most room, so that all lines
        become about equally long (longest processing time first, Graham 1969).
        """
        lengths, fresh = self.length[chosen].tolist(), self.begins_episode[chosen].tolist()
        full = (sum(lengths) + len(lengths)) // (int(self.length.max()) + 1)
        ends = [(0, line) for line in range(max(1, full, len(fresh) - sum(fresh)))]  # a heap of (rows taken, line)
        lines, offsets = [0] * len(lengths), [0] * len(lengths)
        for i in sorted(range(len(lengths)), key=lambda i: (fresh[i], -lengths[i])):
            offsets[i], lines[i] = heapq.heappop(ends)
            heapq.heappush(ends, (offsets[i] + lengths[i] + 1, lines[i]))
        longest = max(end for end, _ in ends) - 1
        return lines, offsets, -(-longest // _LINE_UNIT) * _LINE_UNIT

    def _lay_out(
        self, chosen: Tensor, lines_of: list[int], offsets_of: list[int], width: int, *, packed: bool
    ) -> Layout:
        lengths, starts, environments = (x[chosen].cpu().numpy() for x in (self.length, self.start, self.environment))
        of_row = np.repeat(np.arange(len(lengths)), lengths)
        within = np.arange(len(of_row)) - (lengths.cumsum() - lengths)[of_row]
        flat = (np.array(lines_of) * width + np.array(offsets_of))[of_row] + within
        shape = (1 + max(lines_of), width)
        step, environment = np.full(shape, -1), np.zeros(shape, np.int64)
        step.flat[flat] = starts[of_row] + within
        environment.flat[flat] = environments[of_row]
        on_device = [torch.from_numpy(x).to(chosen.device) for x in (environment, step)]
        return Layout(on_device[0], on_device[1], packed, is_full=len(flat) == step.size)


def minibatches(
    rollouts: Sequence[RolloutBuffer],
    count: int,
    max_length: int | None = None,
    generator: torch.Generator | None = None,
    passes: int = 1,
) -> Iterator[dict[int, SequenceBatch]]:
    """Every valid row of the rollouts once, in ``count`` minibatches of whole sequences and about equal size.

    A minibatch is one batch for each rollout that takes part in it, by the rollout's index, because rollouts may differ
    in their number of slots. There are fewer minibatches than ``count`` when there are fewer sequences. Several
    ``passes`` go over the same rows, each in another order.
    """
    cut = [rollout.sequences(max_length) for rollout in rollouts]
    lengths = torch.cat([sequences.length for sequences in cut])
    source = torch.repeat_interleave(torch.tensor([len(s.length) for s in cut], device=lengths.device))
    local = torch.cat([torch.arange(len(s.length), device=lengths.device) for s in cut])
    for _ in range(passes):
        order = torch.randperm(len(lengths), generator=generator, device=lengths.device)
        middle = lengths[order].cumsum(0) - lengths[order] / 2
        part = (middle * count / lengths.sum()).long()
        for i in part.unique():
            chosen = order[part == i]
            locals_of = {r: local[chosen[source[chosen] == r]] for r in range(len(cut))}
            yield {r: cut[r].batch(own) for r, own in locals_of.items() if len(own)}
