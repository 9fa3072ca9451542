"""A study: all arms on all tasks, in parallel and resumable; every finished piece is a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from esper.evaluation.episodes import EpisodeResult
from esper.evaluation.study.arms import Arm, Bench, study_arms
from esper.evaluation.study.pools import Submit, local_pool
from esper.files import from_plain, read_json, write_json_atomic
from esper.tamiyo.policy.registry import fingerprint, make_policy
from esper.tasks import get_task

Unit = tuple[str, str]
"""(task, arm)"""


@dataclass(frozen=True)
class StudyConfig:
    """What is compared, on what, and how often."""

    task: tuple[str, ...] = (
        "digits",
        "digits_shuffled",
        "mnist1d",
        "mnist1d_shuffled",
        "breast_cancer",
        "spirals",
        "codelm",
        "wine",
        "digits_rows",
        "charlm",
    )
    """Tasks, one or several (see `esper tasks`)."""
    policy: str = "tamiyo"
    """The learned controller: `tamiyo` (the one that comes with Esper) or the directory of a trained policy."""
    arm: tuple[str, ...] = ()
    """Controllers of your own that are compared, too: `module:name` of a rule or a policy class, the name of a policy,
    or the directory of a trained one."""
    seeds: int = 10
    """Paired seeds: episodes of every arm on each task."""
    seed: int = 0
    """Decides the episode seeds and the random architectures."""
    rent: float = 0.02
    """Price of a doubling of the parameters, in points of score (0.02 is two points)."""
    rents: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04, 0.08)
    """Rents for the front of sizes."""
    random_architectures: int = 32
    """Random architectures that growth is compared with, on each task."""
    budgets: tuple[float, ...] = ()
    """Compute of the competitors (searches, larger hosts), in multiples of one growth's: `1 2 4 8` is usual. None by
    default, since each of six competitors costs as many growths on each seed as the budgets add up to."""

    def check(self) -> None:
        """Raise ValueError for what makes no sense, before anything is computed."""
        for name in ("seeds", "random_architectures"):
            if getattr(self, name) < 2:
                raise ValueError(f"--{name.replace('_', '-')} must be 2 or more, got {getattr(self, name)}")
        if min(self.rent, *self.rents) < 0:
            raise ValueError(f"rents must be 0 or more, got {(self.rent, *self.rents)}")
        if min(self.budgets, default=1) < 1 or len(set(self.budgets)) < len(self.budgets):
            raise ValueError(f"--budgets must be different numbers of 1 or more, got {self.budgets}")
        for name in self.task:
            get_task(name)
        _arms(self)
        policy = make_policy(self.policy)
        if not hasattr(policy, "shuffle_observations"):
            raise ValueError(f"--policy must be a learned policy ('tamiyo' or a directory), got '{self.policy}'")


@dataclass(frozen=True)
class _Begun(StudyConfig):
    """What a directory of results was begun with, as it stands in its ``config.json``."""

    policy_sha256: str | None = None
    """Of the policy's file, so that no comparison is gone on with under other weights."""
    arms_sha256: tuple[str | None, ...] = ()
    """Of the files of the arms of the user's own, for those that are trained policies."""


class Study:
    """All arms of a configuration, kept in a directory.

    Args:
        config: What is compared.
        directory: Where results are; a directory with results of the same configuration and the same policy is gone on
            with.
        finished: Whether what is there is to be read alone: then nothing is checked and nothing begun.

    Raises:
        ValueError: When the directory holds a study of another configuration, or of other weights of the policy.
    """

    def __init__(self, config: StudyConfig, directory: Path, *, finished: bool = False) -> None:
        self.config, self.directory = config, directory
        self.arms = _arms(config)
        if finished:
            return
        stored = directory / "config.json"
        mine = _Begun(
            **vars(config),
            policy_sha256=fingerprint(config.policy),
            arms_sha256=tuple(fingerprint(arm) for arm in config.arm),
        )
        if stored.exists() and (theirs := from_plain(_Begun, read_json(stored), stored)) != mine:
            different = sorted(name for name, value in vars(mine).items() if value != getattr(theirs, name))
            raise ValueError(
                f"{directory} holds a comparison with other settings ({', '.join(different)}); choose another --out, "
                "or give the same settings to go on with it"
            )
        write_json_atomic(stored, asdict(mine))

    @property
    def units(self) -> list[Unit]:
        """Everything that there is to run."""
        return [(task, arm) for arm in self.arms for task in self.config.task if (task, arm) not in self.obstacles]

    @cached_property
    def obstacles(self) -> dict[Unit, str]:
        """Why units cannot be run, for those that cannot."""
        units = [(task, arm) for arm in self.arms for task in self.config.task]
        found = {(task, arm): self.arms[arm].obstacle(get_task(task)) for task, arm in units}
        return {unit: reason for unit, reason in found.items() if reason is not None}

    def is_finished(self, unit: Unit) -> bool:
        """Whether all seeds of a unit have been run."""
        return self.path(unit).is_file() and (self.arms[unit[1]].whole or self._seeds_run(unit) == self.config.seeds)

    def _seeds_run(self, unit: Unit) -> int:
        return len(self.results(unit)) if self.path(unit).is_file() else 0

    def path(self, unit: Unit) -> Path:
        """File of a unit's results."""
        return self.directory / "results" / (re.sub(r"[^\w.]+", "-", "--".join(unit)) + ".json")

    def results(self, unit: Unit) -> list[EpisodeResult]:
        """Results of a finished unit."""
        path = self.path(unit)
        data = read_json(path)
        if not isinstance(data, list):
            raise ValueError(
                f"'{path}': expected a list of episodes, got {type(data).__name__}; remove it to run it again"
            )
        return [from_plain(EpisodeResult, episode, path, str(i)) for i, episode in enumerate(data)]

    def run(
        self,
        workers: int,
        on_done: Callable[[Unit], None],
        pool: Callable[[int], AbstractContextManager[Submit]] = local_pool,
    ) -> None:
        """Run what is missing, in ``workers`` processes of one thread each; results do not depend on their number.

        Args:
            workers: How many.
            on_done: Called with every unit that is finished.
            pool: Where they are: :func:`~esper.evaluation.study.pools.local_pool` or
                :func:`~esper.evaluation.study.pools.ray_pool`.

        Raises:
            ChildProcessError: When a process has died; what is finished is kept.
        """
        done = {unit for unit in self.units if self.is_finished(unit)}
        for unit in done:
            on_done(unit)
        open_units = [unit for unit in self.units if unit not in done]
        with pool(workers) as submit:
            for unit in self._in_order(submit, workers, open_units, done):
                on_done(unit)

    def _needs(self, unit: Unit) -> set[Unit]:
        """Units that have to be run before this one."""
        task, arm = unit
        here = {(task, needed) for needed in self.arms[arm].needs}
        return here | {(t, needed) for needed in self.arms[arm].needs_elsewhere for t in self.config.task if t != task}

    def _in_order(self, submit: Submit, workers: int, units: list[Unit], done: set[Unit]) -> Iterator[Unit]:
        """Submit each unit once what it needs is done and a worker is free; give out those that are written."""
        running: dict[Future[list[EpisodeResult]], Unit] = {}
        while units or running:
            ready = [unit for unit in units if self._needs(unit) <= done][: workers - len(running)]
            units = [unit for unit in units if unit not in ready]
            for unit in ready:
                needed = {other: self.results(other) for other in self._needs(unit)}
                running[submit(_run_unit, self.config, unit, needed, self._seeds_run(unit))] = unit
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                unit = running.pop(future)
                before = self.results(unit) if self.path(unit).is_file() else []
                write_json_atomic(self.path(unit), [result.to_json() for result in before + future.result()])
                done.add(unit)
                yield unit


def open_study(directory: Path) -> Study:
    """The study in a directory, as it was begun, to be read.

    Raises:
        OSError: When there is none.
        ValueError: When its ``config.json`` is damaged.
    """
    path = directory / "config.json"
    begun = from_plain(_Begun, read_json(path), path)
    config = StudyConfig(**{field.name: getattr(begun, field.name) for field in fields(StudyConfig)})
    return Study(config, directory, finished=True)


def add_seeds(directory: Path, seeds: int) -> StudyConfig:
    """Let the study in a directory have ``seeds`` in all, those that it has included; what it is now.

    Those that have been run stay, but for the arms in which one seed depends on the others: these are run anew.

    Raises:
        OSError: When there is no study.
        ValueError: For fewer seeds than it has, or when its policy has other weights now.
    """
    config = open_study(directory).config
    if seeds < config.seeds:
        raise ValueError(f"--seeds {seeds}: the comparison in {directory} has {config.seeds}; seeds can only be added")
    if seeds > config.seeds:
        study = Study(config, directory)
        for unit in study.units:
            if study.arms[unit[1]].whole:
                study.path(unit).unlink(missing_ok=True)
        path = directory / "config.json"
        write_json_atomic(path, asdict(replace(from_plain(_Begun, read_json(path), path), seeds=seeds)))
    return replace(config, seeds=seeds)


def _arms(config: StudyConfig) -> dict[str, Arm]:
    return study_arms(tuple(config.task), config.rents, config.random_architectures, config.budgets, tuple(config.arm))


def _run_unit(
    config: StudyConfig, unit: Unit, needed: Mapping[Unit, list[EpisodeResult]], first_seed: int
) -> list[EpisodeResult]:
    """In a worker: what comes of a unit, given what came of those that it needs, from one of its seeds on."""
    task, arm = unit
    bench = Bench(
        task=task,
        tasks=tuple(config.task),
        policy=config.policy,
        num_seeds=config.seeds,
        seed=config.seed,
        rent=config.rent,
        random_architectures=config.random_architectures,
        all_results=lambda task, needs: needed[task, needs],
        first_seed=first_seed,
    )
    return _arms(config)[arm].run(bench, arm)
