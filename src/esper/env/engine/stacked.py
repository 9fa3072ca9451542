"""The fast engine: hosts of one structure train in one autograd graph.

It means what :class:`~esper.env.engine.loop.LoopEngine` means, up to the rounding of floating-point sums: the same data
order, initial weights, optimizer, stages, readings, attribution and governor. The networks are real
:class:`~esper.network.growing_network.GrowingNetwork` objects and keep their own state; only the arithmetic is shared.

What happens in one host changes no bit of another, with one exception: a convolution in an image slot may round
otherwise while no other host holds its like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper.actions import ALL_BLUEPRINTS, Decision, own_blueprints
from esper.env.engine.engine import Engine, RowReport
from esper.env.engine.run import ATTRIBUTION_SAMPLES, build_episode_host
from esper.env.engine.stacking.compatibility import check_stackable, structure
from esper.env.engine.stacking.ops import convolution, elementwise, layers  # noqa: F401 - importing them registers them
from esper.env.engine.stacking.rollback import StackedGovernor
from esper.env.engine.stacking.stack import HostStack, StackedRun, View
from esper.env.episode import Episode
from esper.network.attribution import Evaluation, counterfactuals, enter_contributions
from esper.tasks import Task


class Validated(NamedTuple):
    """What a host comes to on validation data."""

    whole: Evaluation
    """On all of them."""
    sample: Evaluation
    """On those on which contributions are measured."""


class StackedEngine(Engine):
    """K hosts in as few graphs as they have structures (one, unless their widths or depths differ).

    Args:
        task: What they learn.
        num_hosts: K.
        blueprints: Names of the blueprints that may be germinated.

    Raises:
        ValueError: If the task's host, or one of the blueprints, cannot be stacked; use the loop engine then.
    """

    def __init__(self, task: Task, num_hosts: int, blueprints: Sequence[str] = ALL_BLUEPRINTS) -> None:
        self.task = task
        self.num_hosts = num_hosts
        self.slot_names = task.slots
        self.blueprints = tuple(blueprints)
        self.runs: dict[int, StackedRun] = {}
        self._stacks: dict[Any, HostStack] = {}
        self._stack_of: dict[int, HostStack] = {}
        if own := sorted(set(own_blueprints()) & set(blueprints)):
            raise ValueError(f"the blueprints {', '.join(own)} have no rule for stacked hosts; use engine='loop'")
        check_stackable(task)

    def reset(self, episodes: Mapping[int, Episode]) -> dict[int, RowReport]:
        """Begin the given episodes in their rows."""
        for row, episode in episodes.items():
            if row in self.runs:
                self._stack_of[row].leave(self.runs[row])
            self._begin(row, episode)
        self._record(self._validate(list(episodes)))
        return {row: self.runs[row].report() for row in episodes}

    def step(self, decisions: Mapping[int, Decision]) -> dict[int, RowReport]:
        """Apply one decision to each given row and train it for one interval."""
        rows = list(decisions)
        for row in rows:
            self.runs[row].network.step(decisions[row])
            self._stack_of[row].settle_seeds(self.runs[row])
        for stack, members in self._by_stack(rows):
            for together in self._by_steps(members):
                for row, loss in zip(together, stack.train([self.runs[row] for row in together]), strict=True):
                    self.runs[row].decision += 1
                    self.runs[row].train_losses.append(loss)
        validated = self._validate(rows)
        diverged = [row for row in rows if self._roll_back_if_diverged(row, validated[row])]
        self._record(validated | self._validate(diverged))
        for row in rows:
            if not self.runs[row].rolled_back:
                self.runs[row].governor.take_snapshot()
        return {row: self.runs[row].report() for row in rows}

    @torch.no_grad()
    def test_scores(self, rows: Sequence[int]) -> dict[int, float]:
        """Score of the given rows' networks on test data, in [0, 1]."""
        splits = self.task.splits()
        found: dict[int, float] = {}
        for stack, members in self._by_stack(rows):
            outputs = stack.outputs([View(self.runs[row]) for row in members], splits.test_x)
            found |= dict(zip(members, self.task.score(outputs, splits.test_y).data.tolist(), strict=True))
        return found

    def _begin(self, row: int, episode: Episode) -> None:
        model = build_episode_host(self.task, episode)
        run = StackedRun(self.task, episode, self.blueprints, model)
        key = structure(model)
        if key not in self._stacks:
            self._stacks[key] = HostStack(self.task, run)
        stack = self._stacks[key]
        stack.enter(run)
        run.governor = StackedGovernor(run, stack)
        self.runs[row], self._stack_of[row] = run, stack

    def _by_stack(self, rows: Sequence[int]) -> list[tuple[HostStack, list[int]]]:
        stacks = {id(self._stack_of[row]): self._stack_of[row] for row in rows}
        return [(stack, [row for row in rows if self._stack_of[row] is stack]) for stack in stacks.values()]

    def _by_steps(self, rows: Sequence[int]) -> list[list[int]]:
        """The rows whose intervals are as long, together."""
        steps = {row: self.runs[row].episode.steps_per_decision(self.task) for row in rows}
        return [[row for row in rows if steps[row] == length] for length in sorted(set(steps.values()))]

    def _roll_back_if_diverged(self, row: int, validated: Validated) -> bool:
        run = self.runs[row]
        run.rolled_back = run.governor.check(run.train_losses[-1], *validated.whole)
        if run.rolled_back:
            run.governor.roll_back()
            self._stack_of[row].settle_seeds(run)
        return run.rolled_back

    @torch.no_grad()
    def _validate(self, rows: Sequence[int]) -> dict[int, Validated]:
        """What the rows come to on validation data, as they are now."""
        splits, sample = self.task.splits(), slice(ATTRIBUTION_SAMPLES)
        found: dict[int, Validated] = {}
        for stack, members in self._by_stack(rows):
            outputs = stack.outputs([View(self.runs[row]) for row in members], splits.val_x)
            whole = self._evaluations(outputs, splits.val_y)
            part = self._evaluations(outputs[sample], splits.val_y[sample])
            found |= {row: Validated(*both) for row, both in zip(members, zip(whole, part, strict=True), strict=True)}
        return found

    @torch.no_grad()
    def _record(self, validated: Mapping[int, Validated]) -> None:
        """Enter what the rows have come to, and measure what their seeds contribute."""
        splits, sample = self.task.splits(), slice(ATTRIBUTION_SAMPLES)
        for row, found in validated.items():
            self.runs[row].record(*found.whole)
        for stack, members in self._by_stack(list(validated)):
            runs = {row: self.runs[row] for row in members}
            views = [View(run, question) for run in runs.values() for question in counterfactuals(run.network)]
            if not views:
                continue
            answers = self._evaluations(stack.outputs(views, splits.val_x[sample]), splits.val_y[sample])
            for row, run in runs.items():
                mine = {v.question: a for v, a in zip(views, answers, strict=True) if v.run is run and v.question}
                enter_contributions(run.network, validated[row].sample, mine)

    def _evaluations(self, outputs: Tensor, targets: Tensor) -> list[Evaluation]:
        """(loss, score) of every row of stacked outputs."""
        losses, scores = self.task.loss(outputs, targets).data, self.task.score(outputs, targets).data
        return list(zip(losses.tolist(), scores.tolist(), strict=True))
