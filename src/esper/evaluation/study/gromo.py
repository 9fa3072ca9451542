"""The arm ``gromo``: the same hosts, grown by the method of Growing Tiny Networks (TINY) in the library of that name.

Every slot gets one of gromo's growing blocks, h + second(gelu(first(h))), that begins without hidden neurons and is the
identity then. At six decisions in the first quarter of a run gromo reads from the gradient which neurons would lower
the loss most, in which slot they would, and how large they should be, and adds them for good (Verbockhaven, Rudkiewicz,
Chevallier and Charpiat, TMLR 2024). Host weights, order of the data, optimizer and length are those of every other arm.

Activation, time of growth and scales were chosen on four validation seeds of digits and mnist1d: GELU beat ReLU, scales
up to 3 beat scales up to 1 and up to 10, the first quarter and the first half were about equal.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esper.env.engine.run import EpisodeData, build_episode_host
from esper.env.episode import Episode
from esper.evaluation.episodes import Block, EpisodeResult, SlotState
from esper.lifecycle import Op, Stage
from esper.network.blueprints import SlotSpec
from esper.network.growing_network import GrowingNetwork
from esper.observation import doublings
from esper.tasks import Task

BLOCK = "gromo"
"""What the blocks are called in results."""
GROWTHS = 6
"""Growth steps, evenly spaced over the first quarter of a run: what is new has three quarters to learn."""
KERNEL = 3
"""Of the convolutions in sequences and images, as in Esper's own."""
STATISTICS_SAMPLES = 512
"""Training samples from which a growth step reads its statistics."""
SCALES = (0.3, 1.0, 3.0)
"""Sizes of the new neurons that are tried; the one with the lowest loss on those samples is kept."""


def obstacle(task: Task) -> str | None:
    """Why this arm cannot be run on a task, in a few words; ``None`` if it can."""
    if task.causal:
        return "gromo has no block that mixes positions and is causal"
    if find_spec("gromo") is None:
        return "gromo is not installed: pip install 'esper-lite[compare]'"
    return None


def grow_with_gromo(task: Task, episode: Episode, *, arm: str) -> EpisodeResult:
    """Train the host of an episode and let gromo grow it.

    Six growth steps share out as many neurons as the host has channels in all its slots, so that the network ends with
    about as many parameters as under the fixed schedule, where every slot holds a convolution.

    Args:
        task: What is learned.
        episode: Under which conditions.
        arm: Name in the result.

    Raises:
        ValueError: When gromo cannot express the task's host (see :func:`obstacle`).
    """
    if reason := obstacle(task):
        raise ValueError(f"the arm '{arm}' cannot be run on the task '{task.name}': {reason}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(episode.seed)
        return _GromoRun(task, episode).result(arm)


class _GromoHost(nn.Module):
    """A host with one of gromo's growing blocks behind each slot."""

    blocks: Any
    """The blocks, in the order of the slots; gromo publishes no types."""

    def __init__(self, task: Task, episode: Episode) -> None:
        super().__init__()
        self.host = build_episode_host(task, episode)
        self.host_params = sum(p.numel() for p in self.host.parameters())
        self.specs = _slot_specs(task, self.host)
        self.blocks = nn.ModuleList(_growing_block(spec) for spec in self.specs)
        self.extended = False
        """Whether neurons that are proposed act as well."""
        for name, spec, block in zip(task.slots, self.specs, self.blocks, strict=True):
            self.host.get_submodule(name).register_forward_hook(self._through(spec, block))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the host for ``x``."""
        return self.host(x)

    @property
    def added_params(self) -> int:
        """Parameters of the blocks that have neurons."""
        grown = [block for block in self.blocks if block.hidden_neurons > 0]
        return sum(p.numel() for block in grown for p in block.parameters())

    def _through(self, spec: SlotSpec, block: Any) -> Any:
        def hook(module: nn.Module, inputs: Any, h: Tensor) -> Tensor:
            call = block.extended_forward if self.extended else block
            if spec.kind != "sequence":
                return call(h)
            return call(h.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)  # an image of height 1

        return hook


class _GromoRun:
    """One episode of the arm; the counterpart of :class:`esper.env.engine.loop.HostRun`."""

    def __init__(self, task: Task, episode: Episode) -> None:
        self.task, self.episode = task, episode
        self.data = EpisodeData(task, episode)
        self.model = _GromoHost(task, episode)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=episode.learning_rate)
        self.flops, self.samples_seen = 0.0, 0
        self.scores = [self._score(task.splits().val_x, task.splits().val_y)]
        self.sizes, self.train_flops, self.ops = [0], [0.0], list[str]()
        self.slots: dict[str, list[SlotState]] = {name: [_dormant()] for name in task.slots}

    def result(self, arm: str) -> EpisodeResult:
        """Play the whole episode."""
        horizon = self.episode.horizon
        growth_steps = {horizon * i // (4 * GROWTHS) for i in range(1, GROWTHS + 1)}
        for decision in range(horizon):
            self._decide(grow=decision in growth_steps)
        host, added, rent = self.model.host_params, self.sizes[-1], self.episode.rent
        splits = self.task.splits()
        return EpisodeResult(
            task=self.task.name,
            arm=arm,
            seed=self.episode.seed,
            J=self.scores[-1] - rent * doublings(host, added),
            score=self.scores[-1],
            test_score=self._score(splits.test_x, splits.test_y),
            host_params=host,
            added_params=added,
            train_samples_seen=self.samples_seen,
            scores=self.scores,
            sizes=self.sizes,
            slots=self.slots,
            ops=self.ops,
            architecture=self._architecture(),
            train_flops=self.train_flops,
            rent=rent,
        )

    def _decide(self, grow: bool) -> None:
        """One decision: grow or not, train an interval, evaluate."""
        if grow:
            self._grow()
        self.ops.append((Op.GERMINATE if grow else Op.WAIT).name)
        self._train_interval()
        self.scores.append(self._score(self.task.splits().val_x, self.task.splits().val_y))
        self.sizes.append(self.model.added_params)
        self.train_flops.append(self.flops)
        for name, block in zip(self.task.slots, self.model.blocks, strict=True):
            self.slots[name].append((Stage.FOSSILIZED.name, BLOCK, 1.0) if block.hidden_neurons else _dormant())

    def _train_interval(self) -> None:
        self.model.train()
        for _ in range(self.task.steps_per_decision):
            x, y = self.data.next_batch()
            self.optimizer.zero_grad(set_to_none=True)
            self.task.loss(self.model(x), y).backward()
            self.optimizer.step()
            self.samples_seen += len(x)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model.eval()(x[:1])
        self.flops += 3 * counter.get_total_flops() * self.task.steps_per_decision * self.task.batch_size

    def _grow(self) -> None:
        """Add neurons to the slot where they lower the loss most, to first order."""
        samples = self.data.samples[:STATISTICS_SAMPLES]
        x, y = self.task.splits().train_x[samples], self.data.y[:STATISTICS_SAMPLES]
        with FlopCounterMode(display=False) as counter:
            self._propose(x, y)
            best = max(self.model.blocks, key=lambda block: float(block.first_order_improvement))
            for block in self.model.blocks:
                if block is not best:
                    block.delete_update()
            scale = min(SCALES, key=lambda scale: self._loss_at(best, scale, x, y))
        best.set_scaling_factor(scale)
        best.apply_change()
        best.delete_update()
        self.flops += counter.get_total_flops()
        self.optimizer = _renewed(self.optimizer, self.model, self.episode.learning_rate)

    def _propose(self, x: Tensor, y: Tensor) -> None:
        """Let every block work out the neurons it would add (the matrices S, M and N of TINY, and their SVD)."""
        blocks = self.model.blocks
        for block in blocks:
            block.init_computation()
        self.model.eval().zero_grad(set_to_none=True)
        (self.task.loss(self.model(x), y) * len(x)).backward()  # gromo expects a sum over samples
        neurons = max(1, round(sum(spec.channels for spec in self.model.specs) / GROWTHS))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using the pseudo-inverse", UserWarning)  # neurons that never fire
            for block in blocks:
                block.update_computation()
                block.compute_optimal_updates(maximum_added_neurons=neurons, compute_delta=False)
                block.reset_computation()

    @torch.no_grad()
    def _loss_at(self, block: Any, scale: float, x: Tensor, y: Tensor) -> float:
        """Loss with the neurons that ``block`` proposes, at a scale."""
        block.set_scaling_factor(scale)
        self.model.extended = True
        loss = float(self.task.loss(self.model(x), y))
        self.model.extended = False
        return loss

    @torch.no_grad()
    def _score(self, x: Tensor, y: Tensor) -> float:
        return float(self.task.score(self.model.eval()(x), y))

    def _architecture(self) -> list[Block]:
        slots = zip(self.task.slots, self.model.blocks, strict=True)
        return [(name, BLOCK, "add", 1.0) for name, block in slots if block.hidden_neurons > 0]


def _dormant() -> SlotState:
    return (Stage.DORMANT.name, None, 0.0)


def _slot_specs(task: Task, host: nn.Module) -> Sequence[SlotSpec]:
    network = GrowingNetwork(host, task.slots, task.splits().val_x[:2], causal=task.causal)
    specs = [slot.spec for slot in network.slots]
    network.remove()
    return specs


def _growing_block(spec: SlotSpec) -> Any:
    """An empty block of gromo's for a slot: linear for vectors, convolutions for sequences and images."""
    from gromo.containers.growing_block import Conv2dGrowingBlock, LinearGrowingBlock  # noqa: PLC0415

    common: dict[str, Any] = {
        "pre_activation": nn.Identity(),
        "mid_activation": nn.GELU(),
        "device": torch.device("cpu"),
        "kwargs_second_layer": {"use_bias": False},  # with one, a convolution of gromo 0.1.0 cannot grow twice
    }
    if spec.kind == "vector":
        return LinearGrowingBlock(spec.channels, spec.channels, **common)
    size, spatial = ((1, KERNEL), (1, *spec.spatial)) if spec.kind == "sequence" else ((KERNEL, KERNEL), spec.spatial)
    layer = {"padding": tuple(k // 2 for k in size), "input_size": spatial}
    common["kwargs_second_layer"] |= layer
    return Conv2dGrowingBlock(spec.channels, spec.channels, size, kwargs_first_layer=layer, **common)


def _renewed(old: torch.optim.Optimizer, model: nn.Module, lr: float) -> torch.optim.Adam:
    """Adam for a network that has grown: what is as it was keeps its moments, layers that changed begin anew."""
    new = torch.optim.Adam(model.parameters(), lr=lr)
    for parameter in model.parameters():
        if parameter in old.state:
            new.state[parameter] = old.state[parameter]
    return new
