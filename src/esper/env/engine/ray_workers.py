"""Workers that are Ray actors, on this machine or on many; one that dies is replaced, and nothing counts twice.

All decisions are made in one place, for all hosts at once: only decisions and reports travel. So a batch is the same,
bit for bit, whatever the number of actors and the order of their answers. What is with an actor follows from the
episodes and the decisions in them (:class:`~esper.env.engine.parallel.Share`): a new actor makes it again from those,
and is then asked what the dead one left unanswered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from esper.cluster import Actors, answered, installed_ray
from esper.env.engine.engine import Engine
from esper.env.engine.parallel import Share, Workers, answer, results
from esper.extensions import known_modules
from esper.workers import prepare_worker


class _Actor:
    """What runs in a worker."""

    def __init__(self, modules: Sequence[str]) -> None:
        prepare_worker(modules)
        self._engines: dict[int, Engine] = {}

    def answer(self, number: int, method: str, argument: Any) -> tuple[bool, Any]:
        return answer(self._engines, number, method, argument)


_ACTORS = Actors(_Actor)
"""Those of this process; they serve every engine."""


def dismiss_actors() -> None:
    """End the actors of this process, so that their CPUs are free; a share that is asked for again is made again."""
    for i in range(len(_ACTORS)):
        _ACTORS.give_up(i)


class RayWorkers(Workers):
    """Ray actors of one thread each, for ``GrowthVectorEnv(num_workers=RayWorkers(4))``.

    Every machine of the cluster needs Esper and the modules that tasks of the user's own come from.

    Args:
        count: How many.
        address: Of a running cluster, as in ``ray.init``; ``None`` starts one on this machine.

    Raises:
        ValueError: When Ray is not installed, or for a cluster with too few CPUs.
        ConnectionError: When no cluster answers.
    """

    def __init__(self, count: int, address: str | None = None) -> None:
        if count < 1:
            raise ValueError(f"expected 1 Ray worker or more, got {count}")
        self.count = count
        self._ray = installed_ray()
        _ACTORS.connect(count, address)
        self._shares: dict[tuple[int, int], Share] = {}
        """(engine, worker) → the share that is there."""
        self._homes: dict[tuple[int, int], Any] = {}
        """(engine, worker) → the actor that holds it."""

    def call(self, engine: int, method: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        """As :meth:`Workers.call`; ChildProcessError only when the last replacement has died, too."""
        try:
            asked = {i: self._ask(engine, i, method, argument) for i, argument in arguments.items()}
            answers = {i: self._answer(engine, i, method, arguments[i], calls) for i, calls in asked.items()}
        except BaseException:  # what the actors have done of it is not known
            for i in arguments:
                _ACTORS.give_up(i)
            raise
        for i in (i for i, (succeeded, _) in answers.items() if succeeded):
            if method == "make":
                self._shares[engine, i] = arguments[i]
            else:
                self._shares[engine, i].record(method, arguments[i])
        return results(answers)

    def drop(self, engine: int) -> None:
        dropped = [key for key in self._shares if key[0] == engine]
        for key in dropped:
            actor = self._homes.pop(key)
            del self._shares[key]
            if self._ray.is_initialized():
                actor.answer.remote(engine, "drop", None)

    def _ask(self, engine: int, i: int, method: str, argument: Any) -> list[Any]:
        """Send a call to a worker, after what makes its share again where that is with no living actor."""
        actor, calls = _ACTORS.alive(i, known_modules()), [(method, argument)]
        if method != "make" and self._homes[engine, i] is not actor:
            calls.insert(0, ("make", self._shares[engine, i]))
        self._homes[engine, i] = actor
        return [actor.answer.remote(engine, *call) for call in calls]

    def _answer(self, engine: int, i: int, method: str, argument: Any, asked: list[Any]) -> tuple[bool, Any]:
        """Wait for a worker's answer; where it dies, for that of its replacement."""
        ask_again, give_up = partial(self._ask, engine, i, method, argument), partial(_ACTORS.give_up, i)
        answers = answered(asked, ask_again=ask_again, give_up=give_up, worker=i, workers=self.count)
        return next((failed for failed in answers if not failed[0]), answers[-1])
