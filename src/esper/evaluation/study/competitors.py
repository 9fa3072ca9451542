"""The competitors: what else one would do with the compute of a growth, or with several times as much.

Each is a search by validation data under one bill: all that is trained on the way is on it, and test data are read when
it is over, by the network that it chose. That network is the one that the search trained, so nothing is trained anew.

What a search chooses from are the same hosts, slots and blueprints as in growth, each slot empty or with a block that
is added, and a factor on the learning rate. One validation per decision of training is on nobody's bill (see
:mod:`esper.env.flops`): its share is the same for every network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import nn

from esper.actions import Decision
from esper.env.episode import Episode
from esper.evaluation import names
from esper.evaluation.episodes import EpisodeResult
from esper.evaluation.statistics import Interval, bootstrap
from esper.evaluation.study.architectures import Architecture, fitting, untrained
from esper.evaluation.table import Table, objective_on_test, total_flops
from esper.lifecycle import Op, Stage
from esper.observation import doublings
from esper.tasks import Task

LEARNING_RATES = (1 / 3, 1.0, 3.0)
"""Factors on the task's learning rate that are tried."""


@dataclass(frozen=True)
class Configuration:
    """A network of a fixed form and how it is trained."""

    architecture: Architecture
    learning_rate: float = 1.0
    """Factor on the task's."""
    width: float = 1.0
    """Factor on the host's."""
    depth: int = 1
    """Layers in each of the host's blocks."""

    def episode(self, episode: Episode) -> Episode:
        """The episode, under this configuration."""
        rate = episode.learning_rate * self.learning_rate
        return replace(episode, learning_rate=rate, width=self.width, depth=self.depth)


class Training:
    """A configuration in training, which can be paused after every decision and gone on with.

    Args:
        task: What is learned.
        episode: Under which conditions, those of the configuration included.
        architecture: The blocks.
    """

    def __init__(self, task: Task, episode: Episode, architecture: Architecture) -> None:
        self.run = untrained(task, episode, architecture)
        self.architecture = architecture
        self.flops_per_decision = architecture.flops_per_decision(task, episode)
        self._host_params = _host_params(task)

    @property
    def decisions_left(self) -> int:
        """Decisions until the training has its full length."""
        return self.run.episode.horizon - self.run.decision

    @property
    def added_params(self) -> int:
        """Parameters beyond those of the task's own host."""
        return self.run.network.host_params + self.run.network.added_params - self._host_params

    @property
    def J(self) -> float:
        """Objective on validation data as the network is now."""
        return self.run.scores[-1] - self.run.episode.rent * doublings(self._host_params, self.added_params)


class ComputeSpent(Exception):
    """The next decision of training would cost more than what is left."""


@dataclass(frozen=True)
class _Best:
    """The best network that a search has seen, as it was then."""

    J: float
    score: float
    added_params: int
    architecture: Architecture
    model: nn.Module


class Search:
    """Trains configurations under one bill and keeps the best network on validation data.

    Args:
        task: What is learned.
        episode: Conditions of every training: order of the data and initial weights, rent, full length.
        flops: What all trainings together may cost.
    """

    def __init__(self, task: Task, episode: Episode, flops: float) -> None:
        self.task, self.episode, self.flops = task, episode, flops
        self.sizes = fitting(task)
        """Slot → the blueprints that fit it → their parameters."""
        self.spent = 0.0
        """FLOPs so far."""
        self._samples_seen = 0
        self._best: _Best | None = None
        self._history: list[tuple[float, float, int]] = []

    def begin(self, configuration: Configuration, *, share: float | None = None) -> Training:
        """Begin to train a configuration; nothing is spent yet.

        Args:
            configuration: What is trained.
            share: The full length is what this share of the search's FLOPs pays for; by default it is the episode's.
        """
        episode = configuration.episode(self.episode)
        if share is not None:
            cost = configuration.architecture.flops_per_decision(self.task, episode)
            episode = replace(episode, horizon=max(1, int(share * self.flops / cost)))
        training = Training(self.task, episode, configuration.architecture)
        self._consider(training)
        return training

    def train(self, training: Training, decisions: int) -> float:
        """Go on with a training, to its full length at most; J on validation data after it.

        Raises:
            ComputeSpent: When there is not enough left; what could be paid for has been trained.
        """
        try:
            for _ in range(min(decisions, training.decisions_left)):
                if self.spent + training.flops_per_decision > self.flops:
                    raise ComputeSpent
                before = training.run.samples_seen
                training.run.step(Decision())
                self.spent += training.flops_per_decision
                self._samples_seen += training.run.samples_seen - before
        finally:
            self._consider(training)
        return training.J

    def _consider(self, training: Training) -> None:
        """Keep the network as it is now if it is the best so far."""
        if self._best is None or training.J > self._best.J:
            score, added, model = training.run.scores[-1], training.added_params, training.run.network.model
            self._best = _Best(training.J, score, added, training.architecture, copy.deepcopy(model))
            self._history.append((self.spent, score, added))

    @torch.no_grad()
    def result(self, arm: str) -> EpisodeResult:
        """What the search came to, its best network on test data; ``scores`` are those of the best network so far.

        Raises:
            ValueError: When nothing has been begun.
        """
        best = self._best
        if best is None:
            raise ValueError("expected a search that has begun a training, got none; call begin() first")
        splits = self.task.splits()
        history = [*self._history, (self.spent, best.score, best.added_params)]
        states = dict.fromkeys(self.task.slots, (Stage.DORMANT.name, None, 0.0)) | {
            name: (Stage.FOSSILIZED.name, kind, alpha) for name, kind, _, alpha in best.architecture.blocks
        }
        return EpisodeResult(
            task=self.task.name,
            arm=arm,
            seed=self.episode.seed,
            J=best.J,
            score=best.score,
            test_score=float(self.task.score(best.model.eval()(splits.test_x), splits.test_y)),
            host_params=_host_params(self.task),
            added_params=best.added_params,
            train_samples_seen=self._samples_seen,
            scores=[score for _, score, _ in history],
            sizes=[added for _, _, added in history],
            slots={name: [state] * len(history) for name, state in states.items()},
            ops=[Op.WAIT.name] * (len(history) - 1),
            architecture=list(best.architecture.blocks),
            train_flops=[spent for spent, _, _ in history],
            rent=self.episode.rent,
        )


# ---------------------------------------------------------------------- strategies

Strategy = Callable[[Search, EpisodeResult], None]
"""Spends the compute of a search; takes the growth that it competes with. What it needs of that is its size."""


def successive_halving(search: Search, grown: EpisodeResult) -> None:
    """Optuna's asynchronous successive halving over what its tree-structured Parzen estimator proposes.

    Resource is the decision; of those that have trained for 1, 4 and 16 decisions the best quarter goes on.
    """
    import optuna  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=search.episode.seed % 2**32),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
    )
    while True:
        trial = study.ask()
        training = search.begin(_suggested(trial, search))
        pruned = False
        while training.decisions_left and not pruned:
            trial.report(search.train(training, 1), training.run.decision)
            pruned = trial.should_prune()
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, training.J)


def random_search(search: Search, grown: EpisodeResult) -> None:
    """Configurations drawn at random, each trained to its full length."""
    draws = _Draws(search)
    while True:
        search.train(search.begin(draws.next()), search.episode.horizon)


def one_epoch_best_k(search: Search, grown: EpisodeResult) -> None:
    """Configurations drawn at random for one epoch each; then the best, in order, to their full length."""
    _screen(search, _Draws(search))


def best_smaller_static(search: Search, grown: EpisodeResult) -> None:
    """The same among networks that have no more parameters than the grown one."""
    _screen(search, _Draws(search, room=grown.added_params))


def wider_host(search: Search, grown: EpisodeResult) -> None:
    """The host with more channels, as large as the grown network, with a learning rate of its own."""
    wider = (Configuration(Architecture(()), width=1 + quarters / 4) for quarters in count())
    _tune_learning_rate(search, _nearest_in_size(search.task, grown.total_params, wider))


def deeper_host(search: Search, grown: EpisodeResult) -> None:
    """The host with more layers, as large as the grown network, with a learning rate of its own."""
    deeper = (Configuration(Architecture(()), depth=depth) for depth in count(1))
    _tune_learning_rate(search, _nearest_in_size(search.task, grown.total_params, deeper))


class _Draws:
    """Configurations drawn at random, the same for an episode; at most ``room`` parameters in all blocks together."""

    def __init__(self, search: Search, room: float = math.inf) -> None:
        self._sizes, self._room = search.sizes, room
        self._rng = np.random.default_rng([search.episode.seed, 0xC0])

    def next(self) -> Configuration:
        """In each slot nothing or one of the blocks for which there is room, all equally probable."""
        blocks, room = [], self._room
        for slot in self._rng.permutation(list(self._sizes)).tolist():
            kinds = [None, *(kind for kind, size in self._sizes[slot].items() if size <= room)]
            kind = kinds[self._rng.integers(len(kinds))]
            if kind is not None:
                blocks.append((slot, kind, "add", 1.0))
                room -= self._sizes[slot][kind]
        return Configuration(Architecture(tuple(blocks)), LEARNING_RATES[self._rng.integers(len(LEARNING_RATES))])


def _suggested(trial: Any, search: Search) -> Configuration:
    """What Optuna's trial proposes."""
    kinds = {slot: trial.suggest_categorical(slot, ["nothing", *sizes]) for slot, sizes in search.sizes.items()}
    blocks = tuple((slot, kind, "add", 1.0) for slot, kind in kinds.items() if kind != "nothing")
    return Configuration(Architecture(blocks), trial.suggest_categorical("learning rate", LEARNING_RATES))


def _screen(search: Search, draws: _Draws) -> None:
    """Half of the compute on one epoch each, the rest on the best."""
    samples = search.episode.steps_per_decision(search.task) * search.task.batch_size
    epoch = math.ceil(len(search.task.splits().train_x) / samples)
    tried = []
    while search.spent < search.flops / 2:
        tried.append(search.begin(draws.next()))
        search.train(tried[-1], epoch)
    for training in sorted(tried, key=lambda training: training.J, reverse=True):
        search.train(training, training.decisions_left)


def _tune_learning_rate(search: Search, configuration: Configuration) -> None:
    """Half of the compute on all learning rates side by side, the rest on the best."""
    share = (1 / len(LEARNING_RATES) + 1) / 2
    trainings = [search.begin(replace(configuration, learning_rate=rate), share=share) for rate in LEARNING_RATES]
    while search.spent < search.flops / 2:
        for training in trainings:
            search.train(training, 1)
    best = max(trainings, key=lambda training: training.J)
    search.train(best, best.decisions_left)


def _host_params(task: Task, width: float = 1.0, depth: int = 1) -> int:
    with torch.random.fork_rng(devices=[]):
        return sum(p.numel() for p in task.build_host(width=width, depth=depth).parameters())


def _nearest_in_size(task: Task, params: int, rising: Iterator[Configuration]) -> Configuration:
    """The one of ever larger hosts without blocks whose parameters come nearest to ``params``, in doublings."""
    too_large = lambda each: math.log2(_host_params(task, each.width, each.depth) / params)  # noqa: E731
    below = above = next(rising)
    while too_large(above) < 0:
        below, above = above, next(rising)
    return min(below, above, key=lambda each: abs(too_large(each)))


# ---------------------------------------------------------------------- the table of competitors


def no_obstacle(task: Task) -> str | None:
    """``None``: what is asked about can be run on every task."""
    return None


def _optuna_missing(task: Task) -> str | None:
    return None if find_spec("optuna") else "optuna is not installed: pip install 'esper-lite[compare]'"


def _no_wider(task: Task) -> str | None:
    return None if _host_params(task, width=2.0) > _host_params(task) else "its host has no width to choose"


def _no_deeper(task: Task) -> str | None:
    return None if _host_params(task, depth=2) > _host_params(task) else "its host has no depth to choose"


@dataclass(frozen=True)
class Competitor:
    """One way to spend the compute of a growth."""

    name: str
    meaning: str
    strategy: Strategy
    obstacle: Callable[[Task], str | None] = no_obstacle
    """Why it cannot be run on a task; ``None`` if it can."""

    def compete(self, task: Task, episode: Episode, grown: EpisodeResult, budget: float, *, arm: str) -> EpisodeResult:
        """What comes of ``budget`` times the FLOPs of a growth; ``arm`` is its name in the result."""
        search = Search(task, episode, budget * grown.train_flops[-1])
        with suppress(ComputeSpent):
            self.strategy(search, grown)
        return search.result(arm)


COMPETITORS = (
    Competitor(
        names.SUCCESSIVE_HALVING,
        "Optuna's successive halving over blocks and learning rates",
        successive_halving,
        _optuna_missing,
    ),
    Competitor(
        names.ONE_EPOCH,
        "random blocks and learning rates for one epoch each, half of the compute; the best of them are trained on",
        one_epoch_best_k,
    ),
    Competitor(names.RANDOM_SEARCH, "random blocks and learning rates, each trained in full", random_search),
    Competitor(
        names.WIDER_HOST,
        "the host with as many more channels as make it the size of the network that Tamiyo grew, its learning rate "
        "tuned with half of the compute",
        wider_host,
        _no_wider,
    ),
    Competitor(names.DEEPER_HOST, "the same with more layers in place of more channels", deeper_host, _no_deeper),
    Competitor(
        names.SMALLER_STATIC,
        f"as {names.ONE_EPOCH}, among the networks that are no larger than the one that Tamiyo grew",
        best_smaller_static,
    ),
)
"""All of them, in the order of the report."""


# ---------------------------------------------------------------------- anytime curves


@dataclass(frozen=True)
class AnytimePoint:
    """What a competitor has come to on a task with so much compute."""

    task: str
    competitor: str
    budget: float
    """Compute allowed, as a multiple of one growth's."""
    train_flops: Interval
    test_J: Interval


def anytime(table: Table, budgets: Sequence[float]) -> list[AnytimePoint]:
    """J on test data against compute: for every task, competitor and budget that was run, means over episodes."""
    return [
        AnytimePoint(
            task,
            competitor.name,
            budget,
            bootstrap(table.scores(arm, total_flops, [task])),
            bootstrap(table.scores(arm, objective_on_test, [task])),
        )
        for task in table.tasks
        for competitor in COMPETITORS
        for budget in sorted(budgets)
        if (task, arm := names.at_budget(competitor.name, budget)) in table.results
    ]
