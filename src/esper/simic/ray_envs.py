"""Gymnasium environments in Ray actors, on this machine or on many; one that dies is replaced, and its episodes go on.

The policy acts in one place, for all environments at once: only actions and what they lead to travel. So a rollout is
the same, bit for bit, whatever the number of actors and the order of their answers. A new actor plays the episodes of a
dead one again, from how they began and the actions since; that leads to the same states where an environment is
deterministic, and whether it is shows in what it shows.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import iterate

from esper.cluster import Actors, answered, installed_ray
from esper.extensions import known_modules, look_here
from esper.simic.locksmith import register_environments
from esper.simic.spaces.adapter import imported
from esper.simic.spaces.masks import METHOD
from esper.workers import prepare_worker

_TURN = threading.Lock()
"""Held by the call that the actors answer: one may be collected for while another is evaluated on."""

_NUMBERS = itertools.count()
"""The actors know vector environments by number."""


class Beginning(NamedTuple):
    """How an episode began."""

    random: Mapping[str, Any]
    """The state of ``np_random`` before."""
    seed: int | None = None
    options: dict[str, Any] | None = None


@dataclass
class Course:
    """What the state of a deterministic environment follows from."""

    beginning: Beginning
    digest: bytes
    """Of everything it has shown since."""
    actions: list[Any] = field(default_factory=list)


class Reset(NamedTuple):
    """What an environment answers to a reset."""

    observation: Any
    info: dict[str, Any]
    beginning: Beginning
    digest: bytes
    mask: Any
    """What its method says of the actions that are allowed, if it has one."""


class Step(NamedTuple):
    """What an environment answers to an action."""

    result: tuple[Any, Any, bool, bool, dict[str, Any]]
    digest: bytes
    mask: Any
    following: Reset | None
    """The beginning of the next episode, where this one has ended."""


class _Row:
    """An environment in an actor."""

    def __init__(self, env: gym.Env) -> None:
        self.env = env

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        beginning = Beginning(self.env.unwrapped.np_random.bit_generator.state, seed, options)
        observation, info = self.env.reset(seed=seed, options=options)
        self.digest = _digest(b"", observation)
        return Reset(observation, info, beginning, self.digest, self._mask())

    def step(self, action: Any) -> Step:
        result: Any = self.env.step(action)
        self.digest = digest = _digest(self.digest, result[:4])
        mask = self._mask()
        return Step(result, digest, mask, self.reset() if result[2] or result[3] else None)

    def play(self, course: Course) -> bool:
        """Play an episode again as far as it had come; whether it showed the same."""
        self.env.unwrapped.np_random.bit_generator.state = course.beginning.random
        self.reset(course.beginning.seed, course.beginning.options)
        ended = any(self.step(action).following is not None for action in course.actions)
        return not ended and self.digest == course.digest

    def _mask(self) -> Any:
        return self.env.get_wrapper_attr(METHOD)() if self.env.has_wrapper_attr(METHOD) else None


def _digest(before: bytes, shown: Any) -> bytes:
    return hashlib.blake2b(before + pickle.dumps(shown), digest_size=16).digest()


class _Actor:
    """What runs in a worker."""

    def __init__(self, modules: Sequence[str]) -> None:
        prepare_worker(modules)
        self._rows: dict[int, dict[int, _Row]] = {}

    def answer(self, method: str, number: int, *arguments: Any) -> tuple[bool, Any]:
        """Whether a call has succeeded, and its result or its error, which is raised in the parent."""
        try:
            return True, getattr(self, method)(number, *arguments)
        except Exception as error:
            return False, error

    def make(self, number: int, make: Callable[[], gym.Env], courses: Mapping[int, Course | None]) -> None:
        """Environments for these rows, each where its course has led."""
        rows = self._rows[number] = {row: _Row(make()) for row in courses}
        for row, course in courses.items():
            if course is not None and not rows[row].play(course):
                raise ChildProcessError(
                    f"environment {row} is not deterministic: its worker has died, and played again from the same seed "
                    "with the same actions it shows something else. Go on from the last update by --resume; its "
                    "episodes begin anew"
                )

    def reset(self, number: int, arguments: Mapping[int, Mapping[str, Any]]) -> dict[int, Reset]:
        return {row: self._rows[number][row].reset(**options) for row, options in arguments.items()}

    def step(self, number: int, actions: Mapping[int, Any]) -> dict[int, Step]:
        return {row: self._rows[number][row].step(action) for row, action in actions.items()}

    def close(self, number: int) -> None:
        for row in self._rows.pop(number, {}).values():
            row.env.close()


_ACTORS = Actors(_Actor)
"""Those of this process; they serve every vector environment."""


class _Elsewhere(gym.Env):
    """An environment in an actor, as the vector environment knows it here."""

    def __init__(self, example: gym.Env, ask: Callable[[dict[str, Any]], Reset]) -> None:
        self.observation_space, self.action_space = example.observation_space, example.action_space
        self.metadata, self.render_mode = example.metadata, example.render_mode
        self._ask = ask
        self.came: Step | None = None
        """What the actor has answered to the next action."""
        if example.has_wrapper_attr(METHOD):
            setattr(self, METHOD, lambda: self._mask)

    def step(self, action: Any) -> Any:
        assert self.came is not None, "the vector environment has asked"
        self._mask = self.came.mask
        return self.came.result

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; where the last one has just ended, the actor has already."""
        reset = None if self.came is None else self.came.following
        if reset is None:
            reset = self._ask({"seed": seed, "options": options})
        self.came, self._mask = None, reset.mask
        return reset.observation, reset.info


class RayVectorEnv(SyncVectorEnv):
    """Copies of a registered environment in Ray actors of one thread each.

    What comes of them is that of :func:`esper.simic.spaces.make_envs` with ``vectorization="sync"``, bit for bit.

    Args:
        env_id: Id of the environment; ``module:Id-v0`` imports a module first, there as here.
        num_envs: K.
        workers: How many actors.
        address: Of a running cluster, as in ``ray.init``; ``None`` starts one on this machine.
        wrappers: Applied to each copy, the first innermost.
        **kwargs: Arguments of the environment.

    Raises:
        ValueError: When Ray is not installed, for a cluster with too few CPUs, or when there is no such module.
        ConnectionError: When no cluster answers.
        ChildProcessError: From :meth:`step` and :meth:`reset`, when an actor and its replacements have died, or what
            was in one that died is not deterministic.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        workers: int,
        address: str | None = None,
        wrappers: Sequence[Callable[[gym.Env], gym.Env]] = (),
        **kwargs: Any,
    ) -> None:
        self._homes: dict[int, Any] = {}
        """Worker → the actor that holds its environments."""
        self._ray = installed_ray()
        _ACTORS.connect(workers, address)
        self._number, self._workers = next(_NUMBERS), min(workers, num_envs)
        self._make = partial(_made, env_id, tuple(wrappers), kwargs)
        self._courses: dict[int, Course | None] = dict.fromkeys(range(num_envs))
        example = self._make()
        super().__init__(
            [partial(_Elsewhere, example, partial(self._reset_row, row)) for row in range(num_envs)],
            autoreset_mode=AutoresetMode.SAME_STEP,
        )
        self.spec = copy.deepcopy(example.unwrapped.spec)
        assert self.spec is not None, "it is registered"
        self.spec.kwargs["wrappers"] = list(wrappers)
        example.close()

    def step(self, actions: Any) -> Any:
        """One step of every environment; the actors work at the same time."""
        rows = dict(enumerate(copy.deepcopy(list(iterate(self.action_space, actions)))))
        for row, step in self._call("step", rows).items():
            env = self.envs[row]
            assert isinstance(env, _Elsewhere)
            env.came = step
            if step.following is not None:
                self._begun(row, step.following)
            elif (course := self._courses[row]) is not None:
                course.actions.append(rows[row])
                course.digest = step.digest
        return super().step(actions)

    def close_extras(self, **kwargs: Any) -> None:
        """Let the actors forget these environments; they stay for the next."""
        for actor in self._homes.values():
            if self._ray.is_initialized():
                actor.answer.remote("close", self._number)

    def _reset_row(self, row: int, options: dict[str, Any]) -> Reset:
        reset: Reset = self._call("reset", {row: options})[row]
        self._begun(row, reset)
        return reset

    def _begun(self, row: int, reset: Reset) -> None:
        self._courses[row] = Course(reset.beginning, reset.digest)

    # ------------------------------------------------------------------ the actors

    def _call(self, method: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        """Row → what its environment answers; an error in one is raised after all have answered."""
        shares: dict[int, dict[int, Any]] = {}
        for row, argument in arguments.items():
            shares.setdefault(self._worker(row), {})[row] = argument
        with _TURN:
            try:
                asked = {i: self._ask(i, method, share) for i, share in shares.items()}
                answers = [self._answers(i, calls, method, shares[i]) for i, calls in asked.items()]
                for succeeded, result in itertools.chain.from_iterable(answers):
                    if not succeeded:
                        raise result
            except BaseException:  # what the actors have done of it is not known
                for i in shares:
                    _ACTORS.give_up(i)
                raise
        return {row: answer for *_, (_, of_rows) in answers for row, answer in of_rows.items()}

    def _answers(self, i: int, asked: list[Any], method: str, share: Mapping[int, Any]) -> list[tuple[bool, Any]]:
        ask_again, give_up = partial(self._ask, i, method, share), partial(_ACTORS.give_up, i)
        return answered(asked, ask_again=ask_again, give_up=give_up, worker=i, workers=self._workers)

    def _worker(self, row: int) -> int:
        return row * self._workers // self.num_envs

    def _ask(self, i: int, method: str, share: Mapping[int, Any]) -> list[Any]:
        """Send a call to a worker, after what makes its environments again where they are with no living actor."""
        actor, calls = _ACTORS.alive(i, known_modules()), []
        if self._homes.get(i) is not actor:
            own = {row: c for row, c in self._courses.items() if self._worker(row) == i}
            calls.append(actor.answer.remote("make", self._number, self._make, own))
        self._homes[i] = actor
        return [*calls, actor.answer.remote(method, self._number, share)]


def _made(env_id: str, wrappers: Sequence[Callable[[gym.Env], gym.Env]], kwargs: Mapping[str, Any]) -> gym.Env:
    look_here()
    register_environments()
    env = gym.make(imported(env_id), **kwargs)
    for wrap in wrappers:
        env = wrap(env)
    return env
