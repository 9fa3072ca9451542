"""Hosts of one structure: their weights, their seeds' weights, and the two things that are done to them together."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from esper.actions import ALL_BLUEPRINTS
from esper.env.engine.run import Run
from esper.env.engine.stacking.adam import StackedAdam
from esper.env.engine.stacking.pool import Member, ParameterPool, Saved
from esper.env.engine.stacking.stacked_slots import Group, JoinedSlot
from esper.env.engine.stacking.stacked_tensor import Stacked, stacked
from esper.env.engine.stacking.template import Template, own_tensors
from esper.lifecycle import Stage
from esper.network.attribution import Counterfactual
from esper.network.blueprints import SlotSpec, build_blueprint
from esper.network.governor import Governor
from esper.network.seed import Seed
from esper.network.slot import Slot
from esper.tasks import Task

EVALUATION_ELEMENTS = 2**16
"""About how many numbers a host's activation holds in a pass without gradients; more samples are cut into pieces. How
many other hosts there are must not matter: products of another size may round otherwise."""


@dataclass(frozen=True)
class Placed:
    """A module and the row in which its parameters live."""

    module: nn.Module
    pool: ParameterPool
    member: Member

    @classmethod
    def put(cls, module: nn.Module, pool: ParameterPool, learning_rate: float) -> Placed:
        """Move a module's parameters and running statistics into a pool."""
        held = {name: tensor for name, tensor in own_tensors(module).items() if name in pool.shapes}
        member = Member(held, learning_rate)
        pool.insert(member)
        return cls(module, pool, member)

    def weights(self) -> Tensor:
        """The row, ``[P]``."""
        return self.pool.weights[self.member.position]

    def save(self) -> Saved:
        """A copy of the row and of Adam's state."""
        return self.pool.save(self.member)

    def restore(self, saved: Saved) -> None:
        """Write the row and Adam's state back."""
        self.pool.restore(self.member, saved)

    def leave(self) -> None:
        """Take the module out of its pool."""
        self.pool.remove([self.member])


class StackedRun(Run):
    """A host that is trained in a :class:`HostStack`. Its modules are real; their parameters live in the pools."""

    host: Placed
    seeds: dict[tuple[int, int], Placed]
    """Seeds and candidates, by slot and blueprint: a slot holds one of a kind at most."""
    governor: Governor


@dataclass(frozen=True)
class View:
    """A run to be evaluated: as it is, or with one seed acting otherwise."""

    run: StackedRun
    question: Counterfactual | None = None

    def alpha(self, index: int, blueprint: int) -> float | None:
        """How much of the slot's seed of this blueprint is blended in; ``None`` where there is none that acts."""
        question, slot = self.question, self.run.network.slots[index]
        if question is not None and question.slot == index and question.candidate is not None:
            return question.alpha if question.candidate == blueprint else None
        if slot.seed is None or slot.life.blueprint != blueprint:
            return None
        if question is not None and question.slot == index:
            return question.alpha
        return None if slot.stage is Stage.TRAINING else slot.alpha


class SeedKind:
    """All seeds of one blueprint in one slot."""

    def __init__(self, blueprint: int, spec: SlotSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        with torch.device("meta"):
            self.template = Template(build_blueprint(ALL_BLUEPRINTS[blueprint], spec))
        shapes = {f"blueprint.{name}": shape for name, shape in self.template.shapes.items()}
        gate = {f"style.{name}": torch.Size([spec.channels]) for name in ("weight", "bias")}
        self.pool = ParameterPool(shapes | gate, dtype=dtype, device=device)


class HostStack:
    """Hosts of one structure, trained in one graph and evaluated in one pass.

    Args:
        task: What they learn.
        example: A run of this structure.

    Raises:
        NoRuleError: If the host calls something that cannot be stacked.
    """

    def __init__(self, task: Task, example: StackedRun) -> None:
        self.task = task
        model = copy.deepcopy(example.network.model)
        parameter = next(model.parameters())
        self._dtype, self._device = parameter.dtype, parameter.device
        self._folds = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules())
        self._template = Template(model)
        self._hosts = ParameterPool(self._template.shapes, dtype=self._dtype, device=self._device)
        self._kinds: dict[tuple[int, int], SeedKind] = {}
        self._joins: list[Callable[[Tensor], Tensor] | None] = [None] * example.network.num_slots
        self._width = max(slot.spec.channels * slot.spec.positions for slot in example.network.slots)
        for index, slot in enumerate(example.network.slots):
            self._install(index, slot)

    def _install(self, index: int, slot: Slot) -> None:
        port = slot.port

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            join = self._joins[index]
            return None if join is None else port.write(output, stacked(join(port.read(output).data)))

        self._template.module.get_submodule(slot.name).register_forward_hook(hook)

    # ------------------------------------------------------------------------------------------- who is here

    def enter(self, run: StackedRun) -> None:
        """A run begins."""
        run.host = Placed.put(run.network.model, self._hosts, run.episode.learning_rate)
        run.seeds = {}

    def leave(self, run: StackedRun) -> None:
        """A run ends."""
        for placed in (run.host, *run.seeds.values()):
            placed.leave()

    def settle_seeds(self, run: StackedRun) -> None:
        """Give new seeds and candidates a row, and take those of what is gone."""
        present = {
            (index, blueprint): seed
            for index, slot in enumerate(run.network.slots)
            for blueprint, seed in seeds_of(slot).items()
        }
        for key in [key for key, placed in run.seeds.items() if placed.module is not present.get(key)]:
            run.seeds.pop(key).leave()
        for (index, blueprint), seed in present.items():
            if (index, blueprint) not in run.seeds:
                kind = self._kind(index, blueprint, run.network.slots[index].spec)
                run.seeds[index, blueprint] = Placed.put(seed, kind.pool, run.episode.learning_rate)

    def _kind(self, index: int, blueprint: int, spec: SlotSpec) -> SeedKind:
        if (index, blueprint) not in self._kinds:
            self._kinds[index, blueprint] = SeedKind(blueprint, spec, dtype=self._dtype, device=self._device)
        return self._kinds[index, blueprint]

    # ------------------------------------------------------------------------------------------- training

    def train(self, runs: Sequence[StackedRun]) -> list[float]:
        """One interval of every run, as long for each; their mean training losses."""
        steps = runs[0].episode.steps_per_decision(self.task)
        for run in runs:
            for placed in (run.host, *run.seeds.values()):
                placed.member.learning_rate = run.set_learning_rate()
        self._hosts.arrange([run.host.member for run in runs])
        slots, trained = self._training_slots(runs)
        adam = StackedAdam([(self._hosts, len(runs)), *trained])
        self._template.bind(self._hosts.leaves(len(runs)))
        self._template.module.train()
        batches = [[run.data.next_indices() for run in runs] for _ in range(steps)]
        losses = []
        for step, batch in enumerate(batches):
            measured = step == len(batches) - 1
            for slot in slots:
                slot.measuring = measured
            with self._joining(slots):
                x, y = self._gather(runs, batch)
                loss = self.task.loss(self._template(stacked(x)), stacked(y)).data
                adam.backward(loss.sum())
            if measured:
                self._enter_measurements(runs, slots)
            adam.step()
            losses.append(loss.detach())
        for run, batch_of_run in zip(runs, zip(*batches, strict=True), strict=True):
            run.samples_seen += sum(map(len, batch_of_run))
        means: list[float] = (torch.stack(losses).double().sum(0) / len(losses)).tolist()
        return means

    def _gather(self, runs: Sequence[StackedRun], batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Inputs ``[K, N, ...]`` (in the order of memory that the host likes) and targets ``[K, N, ...]``."""
        samples = torch.stack([run.data.samples[b] for run, b in zip(runs, batch, strict=True)])
        y = torch.stack([run.data.y[b] for run, b in zip(runs, batch, strict=True)])
        train_x = self.task.splits().train_x
        if self._folds:
            return train_x[samples.T].transpose(0, 1), y
        return train_x[samples], y

    def _training_slots(self, runs: Sequence[StackedRun]) -> tuple[list[JoinedSlot], list[tuple[ParameterPool, int]]]:
        slots, trained = [], []
        for index in range(len(self._joins)):
            groups = []
            for blueprint, rows in _by_blueprint(runs, index):
                kind = self._kinds[index, blueprint]
                members = [runs[row].seeds[index, blueprint].member for row in rows]
                kind.pool.arrange(members)
                trained.append((kind.pool, len(members)))
                held = [runs[row].network.slots[index] for row in rows]
                isolated = [slot.seed is None or slot.stage is Stage.TRAINING for slot in held]
                alphas = [None if alone else slot.alpha for alone, slot in zip(isolated, held, strict=True)]
                groups.append(_group(kind, kind.pool.leaves(len(rows)), rows, held, alphas))
            slots.append(JoinedSlot(runs[0].network.slots[index].spec, groups))
        return slots, trained

    def _indices(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    @contextmanager
    def _joining(self, joins: Sequence[Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Inside, the slots do this."""
        self._joins[:] = joins
        try:
            yield
        finally:
            self._joins[:] = [None] * len(self._joins)

    def _enter_measurements(self, runs: Sequence[StackedRun], slots: Sequence[JoinedSlot]) -> None:
        for run, value in zip(runs, self._hosts.gradient_rms(len(runs)), strict=True):
            run.network.host_gradient_rms = value
        for index, joined in enumerate(slots):
            assert joined.measurement is not None and joined.measurement.gradient is not None
            for row, run in enumerate(runs):
                statistics = run.network.slots[index].statistics
                statistics.activation_rms = joined.measurement.activation[row]
                statistics.slot_gradient_rms = joined.measurement.gradient[row]
            for group, effects in zip(joined.groups, joined.measurement.effects, strict=True):
                gradients = group.pool.gradient_rms(len(group.rows))
                for row, effect, gradient in zip(group.rows.tolist(), effects, gradients, strict=True):
                    slot = runs[row].network.slots[index]
                    if slot.seed is not None:
                        slot.statistics.seed_output_rms, slot.statistics.seed_gradient_rms = effect, gradient

    # ------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def outputs(self, views: Sequence[View], x: Tensor) -> Tensor:
        """What each view answers to the same samples ``x [N, ...]``."""
        self._template.module.eval()
        self._template.bind(self._hosts.selected(self._indices([view.run.host.member.position for view in views])))
        slots = [self._evaluation_slot(views, index) for index in range(len(self._joins))]
        size = max(16, EVALUATION_ELEMENTS // self._width)
        with self._joining(slots):
            parts = [self._template(piece) for piece in x.split(size)]
        return stacked(torch.cat([part.data for part in parts], 1))

    def _evaluation_slot(self, views: Sequence[View], index: int) -> JoinedSlot:
        runs = [view.run for view in views]
        groups = []
        for blueprint, all_rows in _by_blueprint(runs, index):
            alphas = {row: views[row].alpha(index, blueprint) for row in all_rows}
            rows = [row for row in all_rows if alphas[row] is not None]
            if not rows:
                continue
            kind = self._kinds[index, blueprint]
            positions = self._indices([runs[row].seeds[index, blueprint].member.position for row in rows])
            held = [runs[row].network.slots[index] for row in rows]
            groups.append(_group(kind, kind.pool.selected(positions), rows, held, [alphas[row] for row in rows]))
        return JoinedSlot(runs[0].network.slots[index].spec, groups)


def seeds_of(slot: Slot) -> dict[int, Seed]:
    """What a slot holds, by blueprint: its seed, or its candidates."""
    if slot.seed is not None:
        return {slot.life.blueprint: slot.seed}
    return {} if slot.nursery is None else slot.nursery.seeds


def _group(
    kind: SeedKind, parameters: list[Stacked], rows: Sequence[int], held: Sequence[Slot], alphas: Sequence[float | None]
) -> Group:
    styles = [slot.life.style or 0 for slot in held]
    counts = (styles.count(0), styles.count(1), styles.count(2))
    return Group(kind.template, parameters, rows, counts, alphas, kind.pool)


def _by_blueprint(runs: Sequence[StackedRun], index: int) -> list[tuple[int, list[int]]]:
    """For each blueprint in this slot, the rows in which it acts or learns, those of one style together."""
    rows: dict[int, list[int]] = defaultdict(list)
    for row, run in enumerate(runs):
        slot = run.network.slots[index]
        if slot.seed is not None or slot.is_auditioning:
            for blueprint in seeds_of(slot):
                rows[blueprint].append(row)
    return [(b, sorted(rows[b], key=lambda r: (runs[r].network.slots[index].life.style or 0, r))) for b in sorted(rows)]
