"""The arms of a study: everything that Tamiyo is compared with, on equal terms and the same seeds."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from gymnasium.vector import AutoresetMode

from esper.env.growth_env import GrowthVectorEnv
from esper.env.reward import RewardConfig
from esper.evaluation.episodes import EpisodeResult, evaluation_seeds, run_episodes
from esper.evaluation.names import (
    ALL_FILLED,
    AUDITION,
    BEST_OF_RANDOM,
    EARLIEST,
    FIXED,
    FOREIGN,
    GROMO,
    HEURISTIC,
    HOST_ALONE,
    RANDOM_LEGAL,
    RANDOM_POPULATION,
    SHUFFLED,
    STATIC_EPOCHS,
    STATIC_FLOPS,
    TAMIYO,
    at_budget,
    at_rent,
)
from esper.evaluation.study.architectures import (
    Architecture,
    EarliestGrowth,
    all_slots_filled,
    episode_of,
    random_architectures,
    train_from_scratch,
)
from esper.evaluation.study.competitors import COMPETITORS, Competitor, no_obstacle
from esper.evaluation.study.gromo import grow_with_gromo, obstacle
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.protocol import Actions, Observation, Policy
from esper.tamiyo.policy.registry import POLICIES, FunctionPolicy, make_policy
from esper.tasks import Task, get_task


@dataclass(frozen=True)
class Bench:
    """What an arm gets to run on one task."""

    task: str
    tasks: tuple[str, ...]
    """All tasks of the study."""
    policy: str
    """Name or directory of the trained policy."""
    num_seeds: int
    seed: int
    rent: float
    random_architectures: int
    all_results: Callable[[str, str], list[EpisodeResult]]
    """What came of a task and an arm that this one needs."""
    first_seed: int = 0
    """Seeds before this one have been run."""

    def results(self, arm: str) -> list[EpisodeResult]:
        """What another arm, which this one needs, came to on this task, for the seeds that are to be run."""
        return self.all_results(self.task, arm)[self.first_seed :]

    @property
    def seeds(self) -> list[int]:
        """Episode seeds of the final comparison that are to be run; nothing is trained, tuned or chosen on them."""
        return evaluation_seeds(self.num_seeds, seed=self.seed, purpose="test")[self.first_seed :]

    def play(self, policy: Policy, arm: str, *, keep_features: bool = False) -> list[EpisodeResult]:
        """A policy on every seed; what it does on one depends on no other, nor on how many there are."""
        return self.play_together(_OneEach(policy, self.seeds), arm, keep_features=keep_features)

    def play_together(self, policy: Policy, arm: str, *, keep_features: bool = False) -> list[EpisodeResult]:
        """A policy that steers all seeds at once."""
        env = GrowthVectorEnv(
            len(self.seeds),
            self.task,
            reward=RewardConfig(rent=self.rent),
            autoreset_mode=AutoresetMode.NEXT_STEP,
        )
        try:
            return run_episodes(env, policy, self.seeds, arm=arm, keep_features=keep_features)
        finally:
            env.close()


class _OneEach:
    """As many copies of a policy as there are runs, each with one run and draws of its own."""

    def __init__(self, policy: Policy, seeds: Sequence[int]) -> None:
        self.policies = [copy.deepcopy(policy) for _ in seeds]
        self.seeds = seeds
        self.auditions = getattr(policy, "auditions", None)

    def reset(self, num_runs: int, seed: int) -> None:
        """Begin one run each; its draws depend on the seed of its episode."""
        for policy, episode_seed in zip(self.policies, self.seeds, strict=True):
            policy.reset(1, seed=int(np.random.SeedSequence(episode_seed).generate_state(1)[0]))

    def act(self, observation: Observation) -> Actions:
        """One decision for each run."""
        acted = [policy.act(_of_run(observation, row)) for row, policy in enumerate(self.policies)]
        return {head: np.concatenate([actions[head] for actions in acted]) for head in acted[0]}


def _of_run(observation: Observation, row: int) -> Observation:
    """What one of many runs shows, as a batch of one."""
    seen = {name: part[row : row + 1] for name, part in observation.items() if isinstance(part, np.ndarray)}
    masks = {head: mask[row : row + 1] for head, mask in observation["action_mask"].items()}
    return {**observation, **seen, "action_mask": masks}


@dataclass(frozen=True)
class Arm:
    """One way to get a network, and what it is in words."""

    name: str
    meaning: str
    run: Callable[[Bench, str], list[EpisodeResult]]
    """Takes the bench and the arm's name."""
    needs: tuple[str, ...] = ()
    """Arms that have to be run before, on the same task."""
    needs_elsewhere: tuple[str, ...] = ()
    """Arms that have to be run before, on all other tasks."""
    obstacle: Callable[[Task], str | None] = no_obstacle
    """Why the arm cannot be run on a task; ``None`` if it can."""
    whole: bool = False
    """Whether what comes of one seed depends on the others: then all are run anew when seeds are added."""


def _named(policy: str) -> Callable[[Bench, str], list[EpisodeResult]]:
    return lambda bench, arm: bench.play(POLICIES[policy](), arm)


def _tamiyo(bench: Bench, arm: str) -> list[EpisodeResult]:
    return bench.play(make_policy(bench.policy), arm, keep_features=arm == TAMIYO)


def _shuffled(bench: Bench, arm: str) -> list[EpisodeResult]:
    policy = make_policy(bench.policy)
    policy.shuffle_observations = True  # type: ignore[attr-defined]
    return bench.play_together(policy, arm)


def _foreign(bench: Bench, arm: str) -> list[EpisodeResult]:
    policy = make_policy(bench.policy)
    runs = [run for task in bench.tasks if task != bench.task for run in bench.all_results(task, TAMIYO)]
    policy.foreign_observations = [np.array(run.features) for run in runs]  # type: ignore[attr-defined]
    return bench.play_together(policy, arm)


def _grown(bench: Bench) -> list[tuple[EpisodeResult, Architecture]]:
    return [(result, Architecture(tuple(result.architecture))) for result in bench.results(TAMIYO)]


def _earliest(bench: Bench, arm: str) -> list[EpisodeResult]:
    return bench.play_together(EarliestGrowth(get_task(bench.task), [network for _, network in _grown(bench)]), arm)


def _static_epochs(bench: Bench, arm: str) -> list[EpisodeResult]:
    task = get_task(bench.task)
    return [
        train_from_scratch(task, episode_of(task, grown.seed, bench.rent), architecture, arm=arm)
        for grown, architecture in _grown(bench)
    ]


def _static_flops(bench: Bench, arm: str) -> list[EpisodeResult]:
    task = get_task(bench.task)
    results = []
    for grown, architecture in _grown(bench):
        episode = episode_of(task, grown.seed, bench.rent)
        decisions = round(grown.train_flops[-1] / architecture.flops_per_decision(task, episode))
        results.append(train_from_scratch(task, episode, architecture, arm=arm, decisions=decisions))
    return results


def _all_filled(bench: Bench, arm: str) -> list[EpisodeResult]:
    task = get_task(bench.task)
    network = all_slots_filled(task)
    return [train_from_scratch(task, episode_of(task, s, bench.rent), network, arm=arm) for s in bench.seeds]


def _random_population(bench: Bench, arm: str) -> list[EpisodeResult]:
    task = get_task(bench.task)
    grown = bench.results(TAMIYO)
    compute = sum(result.train_flops[-1] for result in grown) / len(grown)
    architectures = _drawn(bench, task)
    seeds = evaluation_seeds(len(architectures), seed=bench.seed, purpose=arm)
    results = []
    for seed, architecture in zip(seeds, architectures, strict=True):
        episode = episode_of(task, seed, bench.rent)
        decisions = round(compute / architecture.flops_per_decision(task, episode))
        results.append(train_from_scratch(task, episode, architecture, arm=arm, decisions=decisions))
    return results


def _drawn(bench: Bench, task: Task) -> list[Architecture]:
    return list(random_architectures(task, bench.random_architectures, bench.seed))


def _best_of_random(bench: Bench, arm: str) -> list[EpisodeResult]:
    """The architecture whose J on validation data is best, trained anew on every seed; the search is on its bill."""
    task = get_task(bench.task)
    population = bench.results(RANDOM_POPULATION)
    best = _drawn(bench, task)[max(range(len(population)), key=lambda i: population[i].J)]
    search = sum(result.train_flops[-1] for result in population)
    results = []
    for seed in bench.seeds:
        result = train_from_scratch(task, episode_of(task, seed, bench.rent), best, arm=arm)
        results.append(replace(result, train_flops=[search + flops for flops in result.train_flops]))
    return results


def _gromo(bench: Bench, arm: str) -> list[EpisodeResult]:
    task = get_task(bench.task)
    return [grow_with_gromo(task, episode_of(task, seed, bench.rent), arm=arm) for seed in bench.seeds]


def _competitor(competitor: Competitor, budget: float) -> Callable[[Bench, str], list[EpisodeResult]]:
    def run(bench: Bench, arm: str) -> list[EpisodeResult]:
        task = get_task(bench.task)
        return [
            competitor.compete(task, episode_of(task, grown.seed, bench.rent), grown, budget, arm=arm)
            for grown in bench.results(TAMIYO)
        ]

    return run


def _at_rent(run: Callable[[Bench, str], list[EpisodeResult]], rent: float) -> Callable[..., list[EpisodeResult]]:
    return lambda bench, arm: run(replace(bench, rent=rent), arm)


def study_arms(
    tasks: tuple[str, ...],
    rents: tuple[float, ...],
    random_count: int,
    budgets: tuple[float, ...],
    own: tuple[str, ...] = (),
) -> dict[str, Arm]:
    """All arms by name, in the order of the report.

    Args:
        tasks: Tasks of the study.
        rents: Rents for the front of sizes.
        random_count: Number of random architectures.
        budgets: Compute of the competitors, in multiples of one growth's.
        own: Controllers of the user's own, as :func:`~esper.tamiyo.policy.registry.make_policy` takes them.

    Raises:
        ValueError: For a controller that cannot be found, or that bears the name of another arm.
    """
    arms = [
        Arm(HOST_ALONE, "the host, trained without growth", _named("wait")),
        Arm(RANDOM_LEGAL, "draws every decision uniformly among the legal ones", _named("random")),
        Arm(FIXED, "the same growth in every run: a convolution (or what fits) into each slot early", _named("fixed")),
        Arm(
            HEURISTIC,
            "written by hand: tries blocks, keeps those whose contribution pays the rent",
            _named("heuristic"),
        ),
        Arm(
            AUDITION,
            "written by hand: lets all kinds of blocks audition, grows what promises most, asks again",
            _named("audition"),
        ),
        Arm(TAMIYO, "the learned controller", _tamiyo),
        Arm(
            SHUFFLED,
            "the learned controller, shown what happens in other runs of the same task",
            _shuffled,
            whole=True,
        ),
        Arm(
            EARLIEST,
            "the network that Tamiyo grew, grown again as early as one decision at a time allows: what growing costs "
            "by itself, whoever decides",
            _earliest,
            (TAMIYO,),
        ),
        Arm(STATIC_EPOCHS, "the network that Tamiyo grew, trained from scratch for as long", _static_epochs, (TAMIYO,)),
        Arm(STATIC_FLOPS, "the same, trained from scratch for as many FLOPs", _static_flops, (TAMIYO,)),
        Arm(ALL_FILLED, "the largest fitting block in every slot from the start", _all_filled),
        Arm(
            RANDOM_POPULATION,
            f"{random_count} random architectures, each trained for as many FLOPs as a growth",
            _random_population,
            (TAMIYO,),
            whole=True,
        ),
        Arm(
            BEST_OF_RANDOM,
            "the best of those on validation data, trained anew; its FLOPs include the search",
            _best_of_random,
            (RANDOM_POPULATION,),
            whole=True,
        ),
        Arm(
            GROMO,
            "the host, grown to about the size of the fixed schedule by TINY, a method that reads new neurons from the "
            "gradient (the library gromo)",
            _gromo,
            obstacle=obstacle,
        ),
    ]
    if len(tasks) > 1:
        meaning = "the learned controller, shown what happened in its runs of other tasks"
        shuffled = next(i for i, arm in enumerate(arms) if arm.name == SHUFFLED)
        arms.insert(shuffled + 1, Arm(FOREIGN, meaning, _foreign, needs_elsewhere=(TAMIYO,), whole=True))
    arms += [
        Arm(
            at_budget(competitor.name, budget),
            f"{competitor.meaning}; for {budget:g} times the FLOPs of a growth",
            _competitor(competitor, budget),
            (TAMIYO,),
            obstacle=competitor.obstacle,
        )
        for competitor in COMPETITORS
        for budget in budgets
    ]
    for rent in rents:
        arms.append(Arm(at_rent(TAMIYO, rent), f"Tamiyo under a rent of {rent:g}", _at_rent(_tamiyo, rent)))
    found = {arm.name: arm for arm in arms}
    for name in own:
        if name in found:
            raise ValueError(f"--arm {name}: an arm of this name is in every comparison; choose another name")
        found[name] = Arm(name, _meaning(name), _own)
    return found


def _own(bench: Bench, arm: str) -> list[EpisodeResult]:
    return bench.play(make_policy(arm), arm)


def _meaning(policy: str) -> str:
    """What a controller says of itself, in the first line of its docstring."""
    made = make_policy(policy)
    described = made.rule if isinstance(made, FunctionPolicy) else made
    first = (inspect.getdoc(described) or "").partition("\n")[0]
    return "a trained policy" if isinstance(made, LearnedPolicy) else first or "a controller of your own"
