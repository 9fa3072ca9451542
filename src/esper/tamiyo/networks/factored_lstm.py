"""The recurrent actor-critic with factored, masked, dependent heads.

Shapes: B batch, T time, N = B or B·T rows, S slots, D numbers in a state, E size of a slot encoding, H size of the
core, O ops (choices of the first head), n choices of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from esper.heads import HeadTable
from esper.tamiyo.growth_network import GROWTH_NETWORK
from esper.tamiyo.networks import checks
from esper.tamiyo.networks.action_tree import (
    ActionTree,
    Chooser,
    DescribedHead,
    Draw,
    Noise,
    likeliest,
    most_valuable,
    noise_for,
    sampled,
    stored,
)
from esper.tamiyo.networks.checks import HiddenState, Masks
from esper.tamiyo.networks.config import ACTIVATIONS, NetworkConfig
from esper.tamiyo.networks.initialization import HIDDEN_GAIN, VALUE_GAIN, hidden_layers, linear
from esper.tamiyo.networks.masked_categorical import MaskedCategorical
from esper.tamiyo.networks.memory import Memory
from esper.tamiyo.networks.parts import PartEncoder
from esper.tamiyo.networks.prospects import PROSPECTS, ProspectEncoder
from esper.tamiyo.networks.slot_encoder import SlotEncoder
from esper.tamiyo.networks.standardizer import StateStandardizer

_SUMMARY_SCALE = 0.5


class ActionOutput(NamedTuple):
    """What :meth:`FactoredRecurrentActorCritic.get_action` returns."""

    actions: dict[str, Tensor]
    """Per head, 0 where it is unused: int64 ``[B]``; of a Bernoulli head int64 ``[B, n]``; of a Gaussian head floating
    point ``[B, n]``, before :meth:`~esper.tamiyo.networks.distributions.SquashedGaussian.bounded`."""
    log_probs: dict[str, Tensor]
    """float ``[B]`` per head; 0 where the head is unused."""
    value: Tensor
    """Q(s, op taken) ``[B]``."""
    state_value: Tensor
    """V(s) = Σ_op π(op|s) Q(s, op) ``[B]``."""
    op_values: Tensor
    """Q(s, ·) ``[B, O]``; V(s) ``[B, 1]`` where the op is not categorical."""
    hidden: HiddenState
    """Pair ``[num_layers, B, H]``: the state to hand to the next step."""
    sampled_op: Tensor
    """The op, of the shape of its action: the one that is the action, and that the value and every later head depend
    on."""
    entropies: dict[str, Tensor]
    """float ``[B]`` per head, nats; 0 where the head is unused."""


class _EvaluationFields(NamedTuple):
    log_probs: dict[str, Tensor]
    entropy: dict[str, Tensor]
    values: Tensor
    hidden: HiddenState | None


class Evaluation(_EvaluationFields):
    """What ``evaluate_actions`` returns; unpacks as ``(log_probs, entropy, values, hidden)``.

    Attributes:
        log_probs: float ``[B, T]`` per head, of the stored actions; 0 where the head is unused.
        entropy: float ``[B, T]`` per head, nats; 0 where the head is unused.
        values: Q(s, stored op) ``[B, T]``.
        hidden: Pair ``[num_layers, B, H]`` after the last step; ``None`` if it was not asked for.
        state_values: V(s) ``[B, T]``; its gradient flows through Q only, not through π.
        op_values: Q(s, ·) ``[B, T, O]``.
        used: bool ``[B, T]`` per head: whether the stored action uses it.
        could_matter: bool ``[B, T]`` per head: whether it is used and has more than one allowed choice.
    """

    state_values: Tensor
    op_values: Tensor
    used: dict[str, Tensor]
    could_matter: dict[str, Tensor]

    def __new__(
        cls,
        log_probs: dict[str, Tensor],
        entropy: dict[str, Tensor],
        values: Tensor,
        hidden: HiddenState | None,
        *,
        state_values: Tensor,
        op_values: Tensor,
        used: dict[str, Tensor],
        could_matter: dict[str, Tensor],
    ) -> Evaluation:
        self = super().__new__(cls, log_probs, entropy, values, hidden)
        self.state_values, self.op_values = state_values, op_values
        self.used, self.could_matter = used, could_matter
        return self


class Core(NamedTuple):
    """What the network makes of N rows before anything is drawn: all that actions and values hang on."""

    core: Tensor
    """What was seen and is remembered ``[N, H]``."""
    of_critic: Tensor | None
    """The same of the critic ``[N, H]``; ``None`` where it shares the policy's."""
    slots: Tensor | None
    """Encodings of slots ``[N, S, E]``; ``None`` without slots."""
    described: Tensor | None
    """Encodings of the choices in each slot ``[N, S, n, E]``; ``None`` where none are described."""

    @classmethod
    def joined(cls, steps: Sequence[Core]) -> Core:
        """The rows of several steps, one after the other."""
        parts = [list(part) for part in zip(*steps, strict=True)]
        core, *others = [None if part[0] is None else torch.cat(part) for part in parts]
        assert core is not None
        return cls(core, *others)


class Judged(NamedTuple):
    """What a policy says of actions that have been drawn, for N rows and K heads."""

    log_probs: Tensor
    """``[N, K]``; 0 where the head is unused."""
    entropies: Tensor
    """``[N, K]``, nats; 0 where the head is unused."""
    value: Tensor
    """Q(s, op taken) ``[N]``."""
    state_value: Tensor
    """V(s) ``[N]``."""


class _Decided(NamedTuple):
    draw: Draw
    value: Tensor
    state_value: Tensor
    op_values: Tensor

    def judged(self) -> Judged:
        return Judged(self.draw.log_probs_NK, self.draw.entropies_NK(), self.value, self.state_value)


class FactoredRecurrentActorCritic(nn.Module):
    """A recurrent policy over a table of dependent heads, with a dueling critic Q(s, op) = v(s) + a(s, op).

    The state splits into numbers about the run and numbers about each slot. Slots are a set: one shared encoder,
    attention among them, and a summary that joins the run's numbers on the way to a memory. No weight depends on the
    number of slots: any S may come at any call. The value of a state is V(s) = Σ_op π(op|s) Q(s, op) over the allowed
    ops (Van Seijen et al. 2009, expected Sarsa; Wang et al. 2016, dueling). Where the first head is not categorical
    there are no ops to tell apart, and the critic is V(s) alone.

    Args:
        config: What it is built for and how large it is; by default what steers growth.
        encoders: Modules of the user's own, by the name of the part of the observation that each encodes: from
            ``[N, *shape]`` to ``[N, E]``. Exactly those parts of ``config`` that are of the kind "own" have one.
        check_values: Check the values of inputs and outputs at every call (finite, in range, allowed). Shapes and types
            are always checked.
        **sizes: Fields of :class:`~esper.tamiyo.networks.config.NetworkConfig`, in place of those of ``config``.

    Raises:
        ValueError: For sizes that do not fit each other, a floor that leaves no distribution, or encoders that are
            missing, that nothing asks for, or that do not fit.

    Example:
        >>> network = FactoredRecurrentActorCritic(state_dim=126, num_slots=3)
        >>> masks = {name: None for name in network.heads.names}
        >>> output = network.get_action(torch.zeros(1, 126), torch.full((1, 3), -1), masks)
        >>> bool(output.value == output.op_values[0, output.sampled_op])
        True
    """

    def __init__(
        self,
        config: NetworkConfig = GROWTH_NETWORK,
        *,
        encoders: Mapping[str, nn.Module] | None = None,
        check_values: bool = True,
        **sizes: Any,
    ) -> None:
        super().__init__()
        if not isinstance(config, NetworkConfig):
            raise TypeError(
                f"expected a NetworkConfig, got {type(config).__name__}; "
                "give sizes by name: state_dim=..., num_slots=..."
            )
        self.config = config = replace(config, **sizes)
        self.check_values = check_values
        run_size, slot_size, slot_dim, hidden_dim = (
            config.run_size,
            config.slot_size,
            config.slot_dim,
            config.hidden_dim,
        )
        has_slots, standardizes = config.num_slots > 0, config.num_slots > 0 and config.standardize

        self.slot_encoder = SlotEncoder(slot_size, config.num_blueprints, slot_dim) if has_slots else None
        summary = 2 * slot_dim if has_slots else 0
        self.standardizer = StateStandardizer(run_size, slot_size, config.unknown) if standardizes else None
        self.summary_norm = nn.LayerNorm(summary) if standardizes else None
        self.prospects = ProspectEncoder(config) if config.described_head is not None else None
        self.part_encoder = PartEncoder(config.parts, config.part_dim, encoders or {})
        activation = ACTIVATIONS[config.activation]
        self.activation = activation()
        seen = run_size + summary + self.part_encoder.size
        self.encoder_layers = hidden_layers(seen, config.encoder_layers, activation)
        self.encoder = linear((seen, *config.encoder_layers)[-1], hidden_dim, HIDDEN_GAIN)
        self.encoder_norm = nn.LayerNorm(hidden_dim)
        self.memory = self._make_memory()
        self.core_norm = nn.LayerNorm(hidden_dim)
        self.policy_layers = hidden_layers(hidden_dim, config.policy_layers, activation)
        self.tree = ActionTree(config)
        self.critic_memory = self._make_memory() if config.critic_memory == "separate" else None
        self.critic_norm = nn.LayerNorm(hidden_dim) if config.critic_memory != "shared" else None
        self.critic_layers = hidden_layers(hidden_dim, config.critic_layers, activation)
        self.critic_hidden = linear((hidden_dim, *config.critic_layers)[-1], config.head_dim, HIDDEN_GAIN)
        self.critic = linear(config.head_dim, 1 + config.heads.num_ops, VALUE_GAIN)

    def _make_memory(self) -> Memory | None:
        kind, config = self.config.memory, self.config
        return None if kind == "none" else Memory(kind, config.hidden_dim, config.memory_layers)

    @property
    def heads(self) -> HeadTable:
        """The table of heads."""
        return self.config.heads

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, and of the states expected."""
        return self.encoder.weight.dtype

    def sizes(self, num_slots: int | None = None) -> dict[str, int]:
        """Number of choices of every head, by default for the S of :attr:`config`."""
        return self.heads.sizes(self.config.num_slots if num_slots is None else num_slots)

    def initial_hidden(self, batch_size: int = 1) -> HiddenState:
        """Zeros, the state at the start of an episode: a pair ``[num_layers, B, H]``, see :data:`HiddenState`.

        They belong to no graph. What :meth:`get_action` makes of them while gradients are recorded does: cut it between
        two episodes, see :meth:`~esper.tamiyo.policy.lstm_bundle.LSTMPolicyBundle.detach_hidden`.
        """
        outputs, cells = self.config.state_layers
        weight, size = self.encoder.weight, (batch_size, self.config.hidden_dim)
        return weight.new_zeros(outputs, *size), weight.new_zeros(cells, *size)

    def get_action(
        self,
        state: Float[Tensor, "B D"],
        blueprint_indices: Int[Tensor, "B S"] | None,
        masks: Masks,
        hidden: HiddenState | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        op_share: float = 1.0,
        parts: Mapping[str, Tensor] | None = None,
    ) -> ActionOutput:
        """Decide one step.

        Args:
            state: float ``[B, D]``.
            blueprint_indices: int64 ``[B, S]``, −1 for an empty slot; ``None`` (or ``[B, 0]``) without slots.
            masks: For every head a bool mask, True where allowed, or ``None`` (all allowed): ``[B, n]``, or
                ``[B, n_parent, n]`` for a head with a parent; with one more dimension of 2 for a Bernoulli head; none
                for a Gaussian head. The mask of a head that the op does not use is not read.
            hidden: Pair ``[num_layers, B, H]``; ``None`` at the start of an episode.
            deterministic: Take the likeliest choice of each head instead of drawing one.
            generator: Source of randomness; the same seed draws the same actions.
            op_share: With ``deterministic``, the op is that of the greatest Q(s, op) among those whose probability is
                at least this share of the likeliest's, in (0, 1]; 1 leaves the likeliest alone.
            parts: What of the observation is not in the state, by name, ``[B, ...]``; ``None`` without. ``prospects``,
                ``[B, S, n, P]``, describe the choices of a head in each slot, to a network that reads them; without
                them nothing is known of the choices.

        Raises:
            ValueError: For ``op_share`` out of range, a wrong shape or type, a NaN or infinite number, a blueprint
                index out of range, a used head without an allowed choice, or a tensor made in inference mode while
                gradients are recorded.
        """
        parts = parts or {}
        hidden = self._checked("state", state, blueprint_indices, masks, hidden, parts, batch=("B",))
        if not 0 < op_share <= 1:
            raise ValueError(f"expected op_share in (0, 1], got {op_share}")
        if op_share < 1 and not self.heads.num_ops:
            raise ValueError(f"op_share={op_share} compares ops, but '{self.heads.op.name}' is {self.heads.op.kind}")
        rows = state.shape[0]
        records = torch.is_grad_enabled()
        # Where nothing is to be recorded, inference mode saves a tenth of the time; what leaves it is copied, so that
        # it can be stored and trained on.
        with torch.inference_mode(not records):
            core, hidden = self._core(state.unsqueeze(1), blueprint_indices, hidden, parts)
            drawn_by = None
            if not deterministic:
                num_slots = 0 if core.slots is None else core.slots.shape[1]
                drawn_by = noise_for(self.heads, num_slots, (rows,), state.device, generator)
            decided = self._decide(core, masks, self._chooser(core, drawn_by, op_share))
            draw = decided.draw
            if self.check_values:
                self._check_drawn(draw, (rows,))
            results: tuple[Tensor, ...] = (
                draw.log_probs_NK,
                draw.entropies_NK(),
                *decided[1:],
                *hidden,
                *([draw.choices_NK] if draw.categorical else draw.choices.values()),
            )
        if not records:
            results = tuple(result.clone() for result in results)
            _forget_autocast_weights(state.device.type)
        log_probs, entropies, value, state_value, op_values, output, cell, *choices = results
        actions = self._by_head(choices[0]) if draw.categorical else dict(zip(self.heads.names, choices, strict=True))
        return ActionOutput(
            actions=actions,
            log_probs=self._by_head(log_probs),
            value=value,
            state_value=state_value,
            op_values=op_values,
            hidden=(output, cell),
            sampled_op=actions[self.heads.op.name],
            entropies=self._by_head(entropies),
        )

    def evaluate_actions(
        self,
        states: Float[Tensor, "B T D"],
        blueprint_indices: Int[Tensor, "B T S"] | None,
        actions: Mapping[str, Shaped[Tensor, "B T ..."]],
        masks: Masks,
        hidden: HiddenState | None = None,
        gaps: Bool[Tensor, "B T"] | None = None,
        *,
        final_hidden: bool = True,
        parts: Mapping[str, Tensor] | None = None,
    ) -> Evaluation:
        """Judge stored actions, with gradients: sequences of T steps from a stored hidden state.

        On what :meth:`get_action` stored at the same weights it gives the same log-probabilities and values.

        Args:
            states: float ``[B, T, D]``. Rows of padding must be legal too (their masks allow what their actions say).
            blueprint_indices: int64 ``[B, T, S]``; ``None`` without slots.
            actions: For every head as :meth:`get_action` gave them, ``[B, T]`` or ``[B, T, n]``; what is stored for an
                unused head is not read.
            masks: As in :meth:`get_action`, with ``[B, T]`` in front.
            hidden: Pair ``[num_layers, B, H]`` before the first step; ``None`` at the start of an episode.
            gaps: bool ``[B, T]``, rows of padding that empty the memory, so that another episode may follow in the same
                sequence; ``None`` for none.
            final_hidden: Return the hidden state after the last step; False leaves ``None`` in its place, for who does
                not go on from there: after padding it means nothing.
            parts: As in :meth:`get_action`, ``[B, T, ...]``.

        Raises:
            ValueError: As :meth:`get_action`, and for an action outside its head or masked out.
        """
        parts = parts or {}
        hidden = self._checked("states", states, blueprint_indices, masks, hidden, parts, batch=("B", "T"))
        batch = states.shape[:2]
        num_slots = 0 if blueprint_indices is None else blueprint_indices.shape[-1]
        checks.check_actions(actions, batch, self.heads, num_slots)
        checks.check_gaps(gaps, batch)
        core, hidden = self._core(states, blueprint_indices, hidden, parts, gaps)
        decided = self._decide_sequences(core, actions, masks)
        draw = decided.draw
        if self.check_values:
            self._check_drawn(draw, tuple(batch))
        everywhere = torch.ones(batch, dtype=torch.bool, device=states.device)
        return Evaluation(
            log_probs=self._by_head(draw.log_probs_NK.view(*batch, -1)),
            entropy=self._by_head(draw.entropies_NK().view(*batch, -1)),
            values=decided.value.view(batch),
            hidden=hidden if final_hidden else None,
            state_values=decided.state_value.view(batch),
            op_values=decided.op_values.view(*batch, -1),
            used={name: draw.used[name].view(batch) if name in draw.used else everywhere for name in self.heads.names},
            could_matter=self._by_head(draw.could_matter_NK().view(*batch, -1)),
        )

    @torch.no_grad()
    def probabilities(
        self,
        state: Float[Tensor, "B D"],
        blueprint_indices: Int[Tensor, "B S"] | None,
        masks: Masks,
        hidden: HiddenState | None,
        actions: Mapping[str, Shaped[Tensor, "B ..."]],
        parts: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Probabilities ``[B, n]`` of the choices of each categorical head, given ``actions`` of the heads before it.

        Further arguments and errors as in :meth:`get_action`.
        """
        parts = parts or {}
        hidden = self._checked("state", state, blueprint_indices, masks, hidden, parts, batch=("B",))
        core, _ = self._core(state.unsqueeze(1), blueprint_indices, hidden, parts)
        draw = self._decide(core, masks, stored(actions)).draw
        return {name: d.probs for name, d in draw.distributions.items() if isinstance(d, MaskedCategorical)}

    def state_value(
        self,
        state: Float[Tensor, "B D"],
        blueprint_indices: Int[Tensor, "B S"] | None,
        masks: Masks,
        hidden: HiddenState | None = None,
        parts: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, " B"]:
        """V(s) ``[B]`` without drawing an action; arguments and errors as in :meth:`get_action`."""
        parts = parts or {}
        hidden = self._checked("state", state, blueprint_indices, masks, hidden, parts, batch=("B",))
        core, _ = self._core(state.unsqueeze(1), blueprint_indices, hidden, parts)
        op_values = self._op_values(core)
        if self.heads.num_ops:
            op = self.heads.op.name
            distribution = self.tree.op(self.policy_layers(core.core), masks[op])
            if self.check_values and not torch.isfinite(distribution.log_probs.amax(-1)).all():
                draw = Draw({op: distribution}, {op: distribution.mode()})
                raise ValueError(_diagnosis(draw, (state.shape[0],)))
            value = _expected(distribution.probs, op_values)
        else:
            value = op_values[:, 0]
        if not torch.is_grad_enabled():
            _forget_autocast_weights(state.device.type)
        return value

    # ------------------------------------------------------------------ step by step, judged afterwards

    def core(
        self,
        state: Float[Tensor, "B D"],
        blueprint_indices: Int[Tensor, "B S"] | None,
        hidden: HiddenState,
        parts: Mapping[str, Tensor],
    ) -> tuple[Core, HiddenState]:
        """What one step shows, and the hidden state after it; arguments as in :meth:`get_action`.

        Together with :meth:`draw` and :meth:`judge` this is :meth:`get_action` in parts: a rollout draws at every step,
        and judges all of its steps at once. What is read from an environment has been checked there; only slots are
        looked at here, which the environment's spaces do not describe.

        Raises:
            ValueError: For a blueprint index out of range, or prospects that do not fit.
        """
        if self.slot_encoder is not None:
            assert blueprint_indices is not None
            self._check_slots(blueprint_indices, parts, state.shape[:-1])
        return self._core(state.unsqueeze(1), blueprint_indices, hidden, parts)

    def draw(self, core: Core, masks: Masks, noise: Noise | None, op_share: float = 1.0) -> dict[str, Tensor]:
        """Actions as in :attr:`ActionOutput.actions`, as ``noise`` decides; ``None`` takes the likeliest.

        Raises:
            ValueError: For a network's output that is not finite, or a used head without an allowed choice.
        """
        draw = self._draw(core, masks, self._chooser(core, noise, op_share))
        if self.check_values:
            self._check_drawable(draw, (core.core.shape[0],))
        return draw.choices

    def judge(self, core: Core, actions: Mapping[str, Tensor], masks: Masks) -> Judged:
        """What there is to say of ``actions`` that :meth:`draw` gave, row by row.

        Raises:
            ValueError: For an action that is masked out.
        """
        decided = self._decide(core, masks, stored(actions))
        if self.check_values:
            self._check_drawn(decided.draw, (core.core.shape[0],))
        return decided.judged()

    def judge_sequences(
        self,
        states: Float[Tensor, "B T D"],
        blueprint_indices: Int[Tensor, "B T S"] | None,
        actions: Mapping[str, Shaped[Tensor, "B T ..."]],
        masks: Masks,
        hidden: HiddenState,
        gaps: Bool[Tensor, "B T"] | None,
        parts: Mapping[str, Tensor],
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Judged:
        """:meth:`judge` of whole sequences, with gradients, N = B·T; arguments as in :meth:`evaluate_actions`.

        ``valid`` marks the rows that are no padding: of no others are the ``parts`` encoded; ``None`` for all. Neither
        what comes in nor what comes out is checked.
        """
        core, _ = self._core(states, blueprint_indices, hidden, parts, gaps, valid)
        return self._decide_sequences(core, actions, masks).judged()

    def _decide_sequences(self, core: Core, actions: Mapping[str, Tensor], masks: Masks) -> _Decided:
        rows = {name: action.flatten(0, 1) for name, action in actions.items()}
        flat_masks = {name: None if mask is None else mask.flatten(0, 1) for name, mask in masks.items()}
        return self._decide(core, flat_masks, stored(rows))

    def _chooser(self, core: Core, noise: Noise | None, op_share: float) -> Chooser:
        if noise is not None:
            return sampled(noise)
        return most_valuable(self.heads.op.name, self._op_values(core), op_share) if op_share < 1 else likeliest

    # ------------------------------------------------------------------ parts

    def _by_head(self, x_K: Tensor) -> dict[str, Tensor]:
        """The last dimension, of one number per head, as a dict."""
        return dict(zip(self.heads.names, x_K.unbind(-1), strict=True))

    def _core(
        self,
        states_BTD: Tensor,
        blueprint_indices: Tensor | None,
        hidden: HiddenState,
        parts: Mapping[str, Tensor],
        gaps_BT: Tensor | None = None,
        valid_BT: Tensor | None = None,
    ) -> tuple[Core, HiddenState]:
        """The core of all rows, and the hidden state after the last step."""
        batch, steps = states_BTD.shape[:2]
        rows_ND = states_BTD.flatten(0, 1)
        slots_NSE = described_NSnE = more_NSE = None
        if self.prospects is not None and PROSPECTS in parts:
            described_NSnE = self.prospects(parts[PROSPECTS].flatten(0, -4).to(self.dtype))
            more_NSE = self.prospects.summary(described_NSnE)
        if self.slot_encoder is not None:
            assert blueprint_indices is not None
            indices_NS = blueprint_indices.flatten(0, -2)
            run_size, slot_size = self.config.run_size, self.config.slot_size
            numbers_NSF = rows_ND[:, run_size:].view(*indices_NS.shape, slot_size)
            run_NR = rows_ND[:, :run_size]
            if self.standardizer is not None:
                run_NR, numbers_NSF = self.standardizer(run_NR, numbers_NSF)
            slots_NSE, summary_N2E = self.slot_encoder(numbers_NSF, indices_NS, more_NSE)
            if self.summary_norm is not None:
                # Else the summary, five times as large, would outweigh what is said about the run.
                summary_N2E = _SUMMARY_SCALE * self.summary_norm(summary_N2E)
            rows_ND = torch.cat([run_NR, summary_N2E], dim=-1)
        if self.config.parts:
            valid_N = None if valid_BT is None or valid_BT.all() else valid_BT.flatten()
            rows_ND = torch.cat([rows_ND, self.part_encoder(parts, self.dtype, valid_N)], dim=-1)
        encoded_NH = self.activation(self.encoder_norm(self.encoder(self.encoder_layers(rows_ND))))
        of_policy, of_critic, hidden = self._remembered(encoded_NH.view(batch, steps, -1), hidden, gaps_BT)
        critic_NH = None if self.critic_norm is None else self.critic_norm(of_critic)
        return Core(self.core_norm(of_policy), critic_NH, slots_NSE, described_NSnE), hidden

    def _remembered(
        self, encoded_BTH: Tensor, hidden: HiddenState, gaps_BT: Tensor | None
    ) -> tuple[Tensor, Tensor, HiddenState]:
        """What the policy and what the critic remembers at every step ``[N, H]``, and the state after the last one."""
        encoded_NH = encoded_BTH.flatten(0, 1)
        if self.memory is None:
            return encoded_NH, encoded_NH, hidden
        if self.critic_memory is None:
            of_policy, hidden = self.memory(encoded_BTH, hidden, gaps_BT)
            return of_policy, encoded_NH, hidden
        (own, its), (own_cells, its_cells) = (part.tensor_split(2) for part in hidden)
        of_policy, (own, own_cells) = self.memory(encoded_BTH, (own, own_cells), gaps_BT)
        of_critic, (its, its_cells) = self.critic_memory(encoded_BTH, (its, its_cells), gaps_BT)
        return of_policy, of_critic, (torch.cat([own, its]), torch.cat([own_cells, its_cells]))

    def _draw(self, core: Core, masks: Masks, choose: Chooser) -> Draw:
        """The behaviour policy, whole; rollout and learning differ only in ``choose``."""
        described = None
        if self.prospects is not None and core.described is not None:
            described = DescribedHead(self.prospects, core.described)
        return self.tree.draw(self.policy_layers(core.core), core.slots, masks, choose, described)

    def _decide(self, core: Core, masks: Masks, choose: Chooser) -> _Decided:
        """The behaviour policy and its value."""
        draw = self._draw(core, masks, choose)
        op, op_values_NO = self.heads.op.name, self._op_values(core)
        distribution = draw.distributions[op]
        if not isinstance(distribution, MaskedCategorical):
            return _Decided(draw, op_values_NO[:, 0], op_values_NO[:, 0], op_values_NO)
        value_N = op_values_NO.gather(-1, draw.choices[op].unsqueeze(-1)).squeeze(-1)
        return _Decided(draw, value_N, _expected(distribution.probs, op_values_NO), op_values_NO)

    def _op_values(self, core: Core) -> Tensor:
        """Q(s, ·) ``[N, O]`` = v(s) + a(s, ·); v(s) ``[N, 1]`` where there are no ops."""
        seen_NH = self.critic_layers(core.core if core.of_critic is None else core.of_critic)
        dueling = self.critic(self.activation(self.critic_hidden(seen_NH)))
        dueling = dueling.to(self.dtype)
        return dueling[:, :1] + dueling[:, 1:] if self.heads.num_ops else dueling

    def _checked(
        self,
        name: str,
        state: Tensor,
        blueprint_indices: Tensor | None,
        masks: Masks,
        hidden: HiddenState | None,
        parts: Mapping[str, Tensor],
        *,
        batch: tuple[str, ...],
    ) -> HiddenState:
        """Check what came in; the hidden state to start from."""
        uses_slots = self.config.num_slots > 0
        checks.check_blueprint_indices_given(blueprint_indices, batch, uses_slots)
        num_slots = 0 if blueprint_indices is None else blueprint_indices.shape[-1]
        config, dtype = self.config, self.dtype
        state_dim = config.run_size + config.slot_size * num_slots
        checks.check_state(name, state, batch, state_dim, dtype=dtype, values=self.check_values)
        sizes = state.shape[:-1]
        own_parts = {part: x for part, x in parts.items() if part != PROSPECTS}
        checks.check_parts(config.parts, own_parts, sizes, values=self.check_values)
        if uses_slots:
            assert blueprint_indices is not None
            self._check_slots(blueprint_indices, parts, sizes)
        else:
            checks.check_no_blueprint_indices(blueprint_indices)
        checks.check_masks(self.heads, masks, sizes, num_slots)
        if hidden is None:
            hidden = self.initial_hidden(sizes[0])
        checks.check_hidden(hidden, config.state_layers, (sizes[0], config.hidden_dim), dtype)
        if torch.is_grad_enabled() and self.encoder.weight.requires_grad:
            # What the first operation with a gradient keeps as it is; of everything else it keeps a copy.
            kept: list[tuple[str, Tensor | None]] = [("hidden", part) for part in hidden if len(part)]
            kept += [] if uses_slots or own_parts else [(name, state)]
            kept += [
                (f"the mask of head '{head}'", masks[head]) for head, own in self.heads.conditions.items() if not own
            ]
            checks.check_recordable(kept)
        return hidden

    def _check_slots(self, blueprint_indices: Tensor, parts: Mapping[str, Tensor], batch: torch.Size) -> None:
        config = self.config
        checks.check_blueprint_indices(blueprint_indices, batch, config.num_blueprints)
        if config.described_head is not None:
            num_slots = blueprint_indices.shape[-1]
            form = (num_slots, self.sizes(num_slots)[config.described_head], config.prospect_size)
            checks.check_prospects(parts.get(PROSPECTS), batch, form, values=self.check_values)

    def _check_drawable(self, draw: Draw, batch: tuple[int, ...]) -> None:
        """Each head has something to draw from: of one that has nothing all log-probabilities are NaN."""
        if draw.categorical is None:
            self._check_drawn(draw, batch)
        elif math.isnan(draw.log_probs_NC.sum().item()):
            raise ValueError(_diagnosis(draw, batch))

    def _check_drawn(self, draw: Draw, batch: tuple[int, ...]) -> None:
        """One look at the sum; only a bad one is traced to its head and row."""
        if not math.isfinite(draw.log_probs_NK.sum().item()) and not torch.isfinite(draw.log_probs_NK).all():
            raise ValueError(_diagnosis(draw, batch))


def _forget_autocast_weights(device_type: str) -> None:
    """Drop the low-precision copies of weights that autocast made without a graph.

    Autocast keeps them, and up to PyTorch 2.9 a later forward in the same context would use them again, so that no
    weight would get a gradient (pytorch/pytorch#65766).
    """
    if torch.is_autocast_enabled(device_type):
        torch.clear_autocast_cache()


def _expected(probs_NO: Tensor, op_values_NO: Tensor) -> Tensor:
    """Σ_op π Q ``[N]``, no gradient through π."""
    return (probs_NO.detach() * op_values_NO).sum(-1)


def _diagnosis(draw: Draw, batch: tuple[int, ...]) -> str:
    """Why a log-probability is not finite: the first head and row at fault."""
    for name, distribution in draw.distributions.items():
        bad = ~torch.isfinite(distribution.log_prob(draw.choices[name]))
        if bad.any():
            break
    row = int(bad.nonzero()[0])
    where = f"batch row {row}" if len(batch) == 1 else f"batch row {row // batch[1]}, step {row % batch[1]}"
    if distribution.mask is not None and not distribution.mask[row].any(-1).all():
        return f"head '{name}': the mask of {where} allows no choice, but the head is used; allow at least one"
    choice = draw.choices[name][row]
    if not torch.isfinite(choice).all():
        return f"head '{name}': the stored action {choice.tolist()} of {where} is not finite; look at its source"
    if distribution.mask is None or distribution.log_prob(draw.choices[name])[row].isnan():
        return (
            f"head '{name}': the network's output for {where} is not finite; what it was given is too large, "
            "or its weights or hidden state have diverged"
        )
    masked = f"head '{name}': the stored action {choice.tolist()} of {where} is masked out"
    return f"{masked}; store the masks it was drawn with"
