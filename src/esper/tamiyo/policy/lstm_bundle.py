"""A network made ready for collecting and for learning.

Shapes: B batch, T time, D numbers in a state, S slots, H size of the core.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from esper.auditions import Auditions
from esper.files import Format, from_plain
from esper.heads import HeadTable
from esper.tamiyo.networks import checks
from esper.tamiyo.networks.action_tree import Noise
from esper.tamiyo.networks.checks import HiddenState, Masks
from esper.tamiyo.networks.config import NetworkConfig
from esper.tamiyo.networks.factored_lstm import ActionOutput, Core, Evaluation, FactoredRecurrentActorCritic, Judged

POLICY_FILE = "policy.safetensors"
"""The one file of a saved policy: weights and statistics, with a JSON description in its header."""

POLICY = Format("esper_policy", 5, "a saved policy")

_NETWORK, _NORMALIZER = "network.", "normalizer."


class InferenceHiddenWarning(UserWarning):
    """A hidden state made in inference mode reached training; it was cloned."""


class ObservationNormalizer(Protocol):
    """What the bundle needs of :class:`esper.simic.control.normalization.RunningMeanStd`."""

    def normalize(self, x: Tensor) -> Tensor:
        """Normalised observations, differentiable."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take over saved statistics."""
        ...


class Interface(Protocol):
    """What the bundle needs of :class:`esper.simic.interface.SpacesInterface`: the environment's own terms."""

    def predict(
        self,
        policy: LSTMPolicyBundle,
        observation: Any,
        state: tuple[np.ndarray, np.ndarray] | None,
        episode_start: Any,
        deterministic: bool,
        action_masks: Any,
    ) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
        """Actions, and the memory after them."""
        ...

    def export(self, policy: LSTMPolicyBundle, path: Path) -> Path:
        """Write the policy as a program."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What it is made of, as plain data."""
        ...


class PolicyInput(NamedTuple):
    """What a policy sees at one step (``...`` = B) or over sequences (``...`` = B, T).

    It goes from the environment to the loss as it is. What normalising makes of its ``features``, inside the bundle, is
    the network's ``state``.
    """

    features: Tensor
    """float32 ``[..., D]``, not normalised."""
    blueprint_indices: Tensor | None
    """int64 ``[..., S]``, the blueprint in each slot, −1 for none; ``None`` without slots."""
    masks: Masks
    """bool ``[..., n]`` (or ``[..., n_parent, n]``) or ``None`` (all allowed), for every head."""
    parts: Mapping[str, Tensor] = MappingProxyType({})
    """What of the observation is no features, by name, ``[..., *shape]``: images, indices, what a module of the user's
    own encodes."""

    def map(self, change: Callable[[Tensor], Tensor]) -> PolicyInput:
        """The same with every tensor changed, for instance moved to a device or cut to some rows."""
        indices = self.blueprint_indices
        return PolicyInput(
            features=change(self.features),
            blueprint_indices=None if indices is None else change(indices),
            masks={head: None if mask is None else change(mask) for head, mask in self.masks.items()},
            parts={name: change(part) for name, part in self.parts.items()},
        )


class Step(NamedTuple):
    """One step of a rollout that is judged later, see :meth:`LSTMPolicyBundle.step`; inference tensors."""

    actions: dict[str, Tensor]
    """As in :attr:`ActionOutput.actions`."""
    core: Core
    """What :meth:`LSTMPolicyBundle.judge` needs."""
    hidden: HiddenState
    """Pair ``[num_layers, B, H]`` for the next step."""


class LSTMPolicyBundle:
    """A network and its normaliser, for rollouts, for bootstrapping and for learning.

    Rollouts go through :meth:`act`, bootstrapping through :meth:`get_value`, learning through :meth:`evaluate_actions`;
    who has a trained policy and an observation calls :meth:`predict`. The trainer's rollouts draw by :meth:`step` and
    find values and log-probabilities of all steps at once by :meth:`judge`, which is the same in parts.

    Args:
        network: The network.
        observation_normalizer: Normalises features wherever they enter; :class:`RunningMeanStd` or ``None``. Update its
            statistics between rollouts only: what a rollout saw must be what learning sees.
        strict: Raise, instead of warn, when a hidden state made in inference mode reaches :meth:`evaluate_actions`.
        op_share: How deterministic inference chooses the op: the one of the greatest Q(s, op) among those at
            least this share as probable as the likeliest, in (0, 1]; 1 takes the likeliest. Saved with the policy.
        auditions: What auditioned in empty slots where the policy was trained to steer growth; ``None`` for nothing.
            Saved with the policy.
        interface: Knows observations and actions as the environment has them. Training sets it; saved with the policy.

    Example:
        The right pattern: start from :meth:`initial_hidden`, let :meth:`act` carry the state through the rollout, store
        plain copies of what it returned, and train from those.

        >>> bundle = LSTMPolicyBundle(FactoredRecurrentActorCritic())
        >>> inputs = PolicyInput(torch.zeros(2, 126), torch.full((2, 3), -1), dict.fromkeys(bundle.heads.names))
        >>> start = bundle.initial_hidden(2)                     # an inference tensor: for rollouts
        >>> output = bundle.act(inputs, start)                   # output.hidden goes into the next act()
        >>> stored = tuple(part.clone() for part in start)       # an ordinary tensor: for learning
        >>> sequence = inputs.map(lambda x: x[:, None])          # [B, T=1, ...]
        >>> actions = {name: action[:, None] for name, action in output.actions.items()}
        >>> log_probs, entropy, values, _ = bundle.evaluate_actions(sequence, actions, stored)
        >>> values.mean().backward()
    """

    def __init__(
        self,
        network: FactoredRecurrentActorCritic,
        *,
        observation_normalizer: ObservationNormalizer | None = None,
        strict: bool = False,
        op_share: float = 1.0,
        auditions: Auditions | None = None,
        interface: Interface | None = None,
    ) -> None:
        if not 0 < op_share <= 1:
            raise ValueError(f"expected op_share in (0, 1], got {op_share}")
        self.network = network
        self.auditions = auditions
        self.interface = interface
        self.observation_normalizer = observation_normalizer
        self.strict = strict
        self.op_share = op_share

    @property
    def heads(self) -> HeadTable:
        """The network's table of heads."""
        return self.network.heads

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, np.ndarray] | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
        action_masks: Any = None,
    ) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
        """Decide one step for one environment, or for a batch of B, called as in Stable-Baselines3.

        Args:
            observation: As the environment shows it, or B of them as a vector environment does.
            state: The memory that the call before returned, a pair ``[num_layers, B, H]``; ``None`` at the beginning.
            episode_start: bool ``[B]``, where an episode begins: there ``state`` is not read; ``None``: nowhere.
            deterministic: Take the likeliest choice of each head instead of drawing one.
            action_masks: As the environment gives them in ``info`` or by its method, for those that do; a mask in the
                observation is read there.

        Returns:
            The action as the environment takes it, or B as a vector environment does; and the memory for the next call.

        Raises:
            ValueError: For an observation, mask or state that does not fit; and for a policy that no environment
                trained.

        Example::

            state, episode_start = None, True
            observation, _ = env.reset()
            while True:
                action, state = policy.predict(observation, state, episode_start)
                observation, _, terminated, truncated, _ = env.step(action)
                episode_start = terminated or truncated
                if episode_start:
                    observation, _ = env.reset()
        """
        return self._known_interface().predict(self, observation, state, episode_start, deterministic, action_masks)

    def export(self, path: str | os.PathLike[str]) -> Path:
        """Write the policy as a program that runs where Esper is not installed: ``*.onnx`` or ``*.pt2``.

        It takes observations, masks and memory, and gives actions and memory; see
        :func:`esper.simic.export.export_policy`.

        Raises:
            ValueError: For another suffix, missing packages, and for a policy that no environment trained.
        """
        return self._known_interface().export(self, Path(path))

    def _known_interface(self) -> Interface:
        if self.interface is None:
            raise ValueError(
                "this policy does not know its environment's observations and actions; simic.train() and "
                "simic.load_bundle() give a policy that does (one with slots steers growth: esper.Growth)"
            )
        return self.interface

    @torch.no_grad()
    def act(
        self,
        inputs: PolicyInput,
        hidden: HiddenState,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> ActionOutput:
        """Decide one step of a rollout: ``inputs`` ``[B, ...]``, ``hidden`` a pair ``[num_layers, B, H]``.

        Returns ordinary tensors without a graph, fit for storing. Further arguments and errors as in
        :meth:`FactoredRecurrentActorCritic.get_action`.
        """
        state = self._normalized("features", inputs.features)
        return self.network.get_action(
            state,
            inputs.blueprint_indices,
            inputs.masks,
            hidden,
            deterministic=deterministic,
            generator=generator,
            op_share=self.op_share,
            parts=inputs.parts,
        )

    def probabilities(
        self, inputs: PolicyInput, hidden: HiddenState, actions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """How probable each choice of each categorical head was when :meth:`act` took ``actions``, ``[B, n]``.

        Of a head after the first it is the probability given the choices of those before it.
        """
        state = self._normalized("features", inputs.features)
        return self.network.probabilities(
            state, inputs.blueprint_indices, inputs.masks, hidden, actions, parts=inputs.parts
        )

    @torch.inference_mode()
    def step(self, inputs: PolicyInput, hidden: HiddenState, noise: Noise | None) -> Step:
        """Draw the actions of one step, of ``inputs`` that have been checked where they came in.

        Args:
            inputs: ``[B, ...]``.
            hidden: Pair ``[num_layers, B, H]``.
            noise: What decides the draw, from :func:`~esper.tamiyo.networks.action_tree.noise_for`; ``None`` takes the
                likeliest.

        Raises:
            ValueError: For a network's output that is not finite, or a used head without an allowed choice.
        """
        core, hidden = self.core(inputs, hidden)
        return Step(self.network.draw(core, inputs.masks, noise, self.op_share), core, hidden)

    @torch.inference_mode()
    def core(self, inputs: PolicyInput, hidden: HiddenState) -> tuple[Core, HiddenState]:
        """What one step shows and what is remembered after it, of ``inputs`` that have been checked."""
        return self.network.core(self._standard(inputs.features), inputs.blueprint_indices, hidden, inputs.parts)

    @torch.inference_mode()
    def judge(self, core: Core, actions: Mapping[str, Tensor], masks: Masks) -> Judged:
        """Log-probabilities, entropies and values of what :meth:`step` drew, in N rows; inference tensors."""
        return self.network.judge(core, actions, masks)

    @torch.inference_mode()
    def get_value(
        self,
        features: Float[Tensor, "B D"],
        hidden: HiddenState,
        blueprint_indices: Int[Tensor, "B S"] | None = None,
        masks: Masks | None = None,
        parts: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, " B"]:
        """INFERENCE-MODE: V(s) = Σ_op π(op|s) Q(s, op) over the allowed ops; the result is not differentiable.

        Made for bootstrapping the last step of a rollout and for logging. To train, use :meth:`evaluate_actions`, whose
        ``values`` and ``state_values`` carry gradients.

        Right::

            last_values = bundle.get_value(features, hidden, blueprint_indices, masks)   # bootstrap
            advantages = gae(rewards, values, last_values)

        Wrong::

            log_probs, *_ = bundle.evaluate_actions(inputs, actions, hidden)
            values = bundle.get_value(features, hidden, blueprint_indices, masks)
            policy_loss = -(sum(log_probs.values()) * advantages).mean()
            value_loss = (values - returns).pow(2).mean()
            (policy_loss + 0.5 * value_loss).backward()   # no error: the policy learns, and the critic learns nothing

        The sum has a gradient, that of ``policy_loss``, so nothing complains. A loss of these values alone would:
        RuntimeError, nothing in it requires a gradient.

        Args:
            features: float ``[B, D]``, not normalised.
            hidden: Pair ``[num_layers, B, H]`` before this step.
            blueprint_indices: int64 ``[B, S]``; ``None`` without slots.
            masks: As in :class:`PolicyInput`; ``None`` allows every choice. Only the op's mask bears on the value.
            parts: As in :class:`PolicyInput`; ``None`` without.

        Returns:
            V(s) ``[B]``, an inference tensor.

        Raises:
            ValueError: For bad input; missing ``blueprint_indices`` of a network with slots are named.
        """
        state = self._normalized("features", features)
        if masks is None:
            masks = dict.fromkeys(self.heads.names)
        return self.network.state_value(state, blueprint_indices, masks, hidden, parts)

    @torch.inference_mode()
    def initial_hidden(self, batch_size: int = 1) -> HiddenState:
        """Zeros to start a rollout: a pair of inference tensors ``[num_layers, B, H]``; clone them to train.

        Every episode begins with them. So no gradient leads from one episode into the one before, and nothing of the
        one before stays in memory. Within an episode :meth:`act` returns states without a graph, too; only a rollout
        that records gradients has something to cut, see :meth:`detach_hidden`.
        """
        return self.network.initial_hidden(batch_size)

    @staticmethod
    def detach_hidden(hidden: HiddenState) -> HiddenState:
        """The same state, cut from the graph that made it: for the end of an episode.

        A state made while gradients are recorded holds the graph of every step before it. Handed on without a cut, it
        lets gradients cross from one episode into those before, and memory grows with every step.

        Training with :mod:`esper.simic` never needs this: :meth:`act` returns states without a graph, and the rollout
        buffer stores copies. Whoever calls ``network.get_action()`` with gradients in a loop of his own cuts the state
        himself between two episodes, and where else gradients are to stop.
        """
        return hidden[0].detach(), hidden[1].detach()

    def evaluate_actions(
        self,
        inputs: PolicyInput,
        actions: Mapping[str, Shaped[Tensor, "B T ..."]],
        hidden: HiddenState | None = None,
        gaps: Bool[Tensor, "B T"] | None = None,
        *,
        final_hidden: bool = True,
    ) -> Evaluation:
        """Judge stored actions, with gradients; see :meth:`FactoredRecurrentActorCritic.evaluate_actions`.

        Args:
            inputs: Sequences ``[B, T, ...]``.
            actions: For every head as :meth:`act` gave them, ``[B, T]`` or ``[B, T, n]``.
            hidden: Pair ``[num_layers, B, H]`` before the first step, as the rollout stored it; ``None`` at the start
                of an episode.
            gaps: bool ``[B, T]``, rows of padding that empty the memory; ``None`` for none.
            final_hidden: Return the hidden state after the last step; False leaves ``None`` in its place.

        Warns:
            InferenceHiddenWarning: If ``hidden`` was made in inference mode; a clone is used.

        Raises:
            ValueError: With ``strict``, instead of that warning; and for bad input.
        """
        if hidden is not None:
            hidden = self._trainable(hidden)
        states = self._normalized("features", inputs.features)
        return self.network.evaluate_actions(
            states,
            inputs.blueprint_indices,
            actions,
            inputs.masks,
            hidden=hidden,
            gaps=gaps,
            final_hidden=final_hidden,
            parts=inputs.parts,
        )

    def judge_sequences(
        self,
        inputs: PolicyInput,
        actions: Mapping[str, Shaped[Tensor, "B T ..."]],
        hidden: HiddenState,
        gaps: Bool[Tensor, "B T"] | None = None,
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Judged:
        """:meth:`evaluate_actions` of what a rollout stored, and checked then: N = B·T rows, with gradients.

        ``valid`` marks the rows that are no padding; no encoder sees the others. ``None`` for all.
        """
        states, parts = self._standard(inputs.features), inputs.parts
        indices, masks = inputs.blueprint_indices, inputs.masks
        return self.network.judge_sequences(states, indices, actions, masks, hidden, gaps, parts, valid)

    def _trainable(self, hidden: HiddenState) -> HiddenState:
        if not any(part.is_inference() for part in hidden):
            return hidden
        message = (
            "the hidden state was made in inference mode (by initial_hidden() or get_value()) and cannot take part in "
            "training; train from the states a rollout stored, or clone it: tuple(part.clone() for part in hidden)"
        )
        if self.strict:
            raise ValueError(message)
        warnings.warn(message + "; a clone is used", InferenceHiddenWarning, stacklevel=3)
        return hidden[0].clone(), hidden[1].clone()

    def _normalized(self, name: str, features: Tensor) -> Tensor:
        if self.observation_normalizer is None:
            return features
        # Before normalising, which would clip an infinity to an ordinary number.
        if self.network.check_values:
            checks.check_finite(name, features)
        return self._standard(features)

    def _standard(self, features: Tensor) -> Tensor:
        return features if self.observation_normalizer is None else self.observation_normalizer.normalize(features)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write weights, sizes, heads table and statistics to ``directory`` as one file, replaced atomically."""
        tensors = {_NETWORK + name: tensor for name, tensor in self.network.state_dict().items()}
        if self.observation_normalizer is not None:
            statistics = self.observation_normalizer.state_dict()
            tensors |= {_NORMALIZER + name: tensor for name, tensor in statistics.items()}
        path = Path(directory) / POLICY_FILE
        description = {
            "network": self.network.config.to_json(),
            "op_share": self.op_share,
            "auditions": None if self.auditions is None else asdict(self.auditions),
            "interface": None if self.interface is None else self.interface.to_json(),
        }
        POLICY.write(path, description, tensors)
        return path

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str],
        *,
        heads: HeadTable | None = None,
        observation_normalizer: ObservationNormalizer | None = None,
        strict: bool = False,
        encoders: Mapping[str, nn.Module] | None = None,
        interface: Callable[[dict[str, Any], FactoredRecurrentActorCritic], Interface] | None = None,
    ) -> LSTMPolicyBundle:
        """The policy that :meth:`save` wrote to ``directory``, on the CPU.

        Args:
            directory: Where it was saved.
            heads: The table the policy must have; ``None`` takes the one it was saved with.
            observation_normalizer: Takes over the saved statistics; needed if and only if some were saved.
            strict: As in the constructor.
            encoders: Modules of the user's own that encode parts of the observation, by part: a file holds their
                weights, not their code.
            interface: Makes the interface of what was saved of it; ``None`` leaves it out.

        Raises:
            ValueError: For a file that is missing, damaged, foreign or of another version, other heads than expected,
                weights that are not finite or do not fit the description, or a normaliser missing or not asked for.
        """
        path = Path(directory) / POLICY_FILE
        description, tensors = POLICY.read(path)
        described = from_plain(_Description, description, path)
        weights = _with_prefix(tensors, _NETWORK)
        _check_weights(weights, described.network, encoders, path)
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, only to be replaced
            network = FactoredRecurrentActorCritic(described.network, encoders=encoders)
        if heads is not None and network.heads != heads:
            raise ValueError(
                f"'{path}' was saved with another heads table: expected {_described(heads)}, "
                f"got {_described(network.heads)}"
            )
        statistics = _with_prefix(tensors, _NORMALIZER)
        if bool(statistics) != (observation_normalizer is not None):
            there, here = ("no", "one") if observation_normalizer is not None else ("its", "no")
            raise ValueError(
                f"'{path}' holds {there} observation statistics, but {here} observation_normalizer was given"
            )
        network.load_state_dict(weights)
        if observation_normalizer is not None:
            _take_over(observation_normalizer, statistics, path)
        known = None if interface is None or described.interface is None else interface(described.interface, network)
        return cls(
            network,
            observation_normalizer=observation_normalizer,
            strict=strict,
            op_share=described.op_share,
            auditions=described.auditions,
            interface=known,
        )


def reading_prospects(bundle: LSTMPolicyBundle, described_head: str, prospect_size: int) -> LSTMPolicyBundle:
    """A copy of a policy that can learn to read what describes the choices of a head; at first it decides as before.

    Args:
        bundle: A policy that does not read prospects; of one that does, a plain copy is returned.
        described_head: The head whose choices are described.
        prospect_size: Numbers about each choice, P.
    """
    copied = copy.deepcopy(bundle)
    if bundle.network.prospects is not None:
        return copied
    config = replace(bundle.network.config, prospects=True, described_head=described_head, prospect_size=prospect_size)
    network = FactoredRecurrentActorCritic(
        config, encoders=copied.network.part_encoder.own, check_values=bundle.network.check_values
    )
    network.load_state_dict(bundle.network.state_dict(), strict=False)
    copied.network = network
    return copied


@dataclass(frozen=True)
class _Description:
    """What stands beside the weights of a saved policy."""

    network: NetworkConfig
    op_share: float
    auditions: Auditions | None = None
    interface: dict[str, Any] | None = None


def _check_weights(
    weights: Mapping[str, Tensor], config: NetworkConfig, encoders: Mapping[str, nn.Module] | None, path: Path
) -> None:
    """Raise ValueError for weights that no network of these sizes has, before memory is taken for one."""
    without_data = {part: copy.deepcopy(module).to("meta") for part, module in (encoders or {}).items()}
    try:
        with torch.device("meta"):
            network = FactoredRecurrentActorCritic(config, encoders=without_data)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"'{path}': field 'network' describes no network: {error}") from error
    expected = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in expected | found:
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"the weights in '{path}' do not fit its description: expected '{name}' of shape {expected.get(name)}, "
                f"got {found.get(name)}"
            )
        if not weights[name].isfinite().all():
            raise ValueError(f"'{path}': expected finite weights, got NaN or infinity in '{name}'")


def _take_over(normalizer: ObservationNormalizer, statistics: Mapping[str, Tensor], path: Path) -> None:
    try:
        normalizer.load_state_dict(statistics)
    except RuntimeError as error:
        raise ValueError(
            f"the observation statistics in '{path}' do not fit the observation_normalizer given: {error}"
        ) from error


def _described(heads: HeadTable) -> str:
    kinds = {head.name: "" if head.is_categorical else f" {head.kind}" for head in heads}
    return ", ".join(f"{head.name}({head.num_choices or 'slots'}{kinds[head.name]})" for head in heads)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
