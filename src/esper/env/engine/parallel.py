"""An engine spread over worker processes, each with one thread: two of them beat one process with two threads.

Here the workers are processes of this machine, started once, by the first engine that needs them, and serve every
further one; in :mod:`esper.env.engine.ray_workers` they are Ray actors.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from esper.actions import Decision
from esper.env.engine.engine import Engine, RowReport
from esper.env.episode import Episode
from esper.workers import begin_worker, died, interrupts_held_back

MakeEngine = Callable[[int], Engine]
"""Builds an engine of the given number of hosts; must be picklable (a partial of a class, say)."""

_NUMBERS = itertools.count()
"""The workers know engines by number."""


@dataclass
class Share:
    """The hosts of an engine that are with one worker, and all that their state follows from."""

    make_engine: MakeEngine
    num_hosts: int
    episodes: dict[int, Episode] = field(default_factory=dict)
    """The episode that runs in each row."""
    decisions: dict[int, list[Decision]] = field(default_factory=dict)
    """Those taken in it so far."""

    def record(self, method: str, argument: Any) -> None:
        """A call of the engine's ``method`` has been answered."""
        if method == "reset":
            self.episodes |= argument
            self.decisions |= {row: [] for row in argument}
        elif method == "step":
            for row, decision in argument.items():
                self.decisions[row].append(decision)

    def engine(self) -> Engine:
        """The engine, in the state of the share: bit for bit, since rows are independent and episodes deterministic."""
        engine = self.make_engine(self.num_hosts)
        if self.episodes:
            engine.reset(self.episodes)
        for t in range(max(map(len, self.decisions.values()), default=0)):
            engine.step({row: taken[t] for row, taken in self.decisions.items() if t < len(taken)})
        return engine


class Workers(ABC):
    """Processes that serve engines; share i of every engine is with worker i."""

    count: int

    @abstractmethod
    def call(self, engine: int, method: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        """Call a method of the engine's shares, all at once; an error in one is raised after all have answered.

        Args:
            engine: Its number.
            method: Of :class:`Engine`, or ``"make"``, which takes a :class:`Share`.
            arguments: Number of the worker → what its share is called with.

        Returns:
            Number of the worker → its answer.

        Raises:
            ChildProcessError: When a worker has died.
        """

    @abstractmethod
    def drop(self, engine: int) -> None:
        """Let the workers forget an engine; they stay for the next."""


def answer(engines: dict[int, Engine], number: int, method: str, argument: Any) -> tuple[bool, Any]:
    """In a worker, which holds ``engines``: whether a call has succeeded, and its result or its error."""
    try:
        if method == "make":
            engines[number] = argument.engine()
        elif method == "drop":
            engines.pop(number, None)
        else:
            return True, getattr(engines[number], method)(argument)
        return True, None
    except Exception as error:  # travels to the parent, which raises it
        return False, error


def results(answers: Mapping[int, tuple[bool, Any]]) -> dict[int, Any]:
    """What came of the calls; the first error is raised."""
    for succeeded, result in answers.values():
        if not succeeded:
            raise result
    return {i: result for i, (_, result) in answers.items()}


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection


_WORKERS: list[_Worker] = []
"""The workers of this process; share i of every engine is with worker i."""

_TURN = threading.Lock()
"""Held by the call that the workers answer."""

os.register_at_fork(after_in_child=_WORKERS.clear)  # they are the parent's


def _workers(count: int) -> list[_Worker]:
    """The first ``count`` workers; those that are missing or dead are started."""
    context = multiprocessing.get_context("spawn")
    for i in range(count):
        if i < len(_WORKERS) and _WORKERS[i].process.is_alive():
            continue
        parent, child = context.Pipe()
        process = context.Process(target=_serve, args=(child,), daemon=True, name=f"esper-worker-{i + 1}")
        with interrupts_held_back():
            process.start()
        child.close()
        _WORKERS[i : i + 1] = [_Worker(process, parent)]
    return _WORKERS[:count]


def _serve(connection: Connection) -> None:
    """Main loop of a worker: answer calls until the parent is gone."""
    begin_worker()
    engines: dict[int, Engine] = {}
    while True:
        try:
            number, method, argument = connection.recv()
            answered = answer(engines, number, method, argument)
            if method != "drop":  # for which nobody waits
                connection.send(answered)
        except (EOFError, OSError):
            return


class LocalWorkers(Workers):
    """Child processes of this one."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"num_workers must be 1 or more, got {count}")
        self.count = count
        self._workers = _workers(count)

    def call(self, engine: int, method: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        asked = [self._workers[i] for i in arguments]
        with _TURN:
            try:
                for (_, connection), argument in zip(asked, arguments.values(), strict=True):
                    connection.send((engine, method, argument))
                answers = [connection.recv() for _, connection in asked]
            except BaseException as error:  # an answer that nobody waits for must not be taken for that of a later call
                lost = died([process for process, _ in asked]) if isinstance(error, (EOFError, OSError)) else None
                for process, _ in asked:
                    process.kill()
                    process.join()
                if lost is None:
                    raise
                raise lost from error
        return results(dict(zip(arguments, answers, strict=True)))

    def drop(self, engine: int) -> None:
        for process, connection in self._workers:
            if process.is_alive():
                with _TURN, suppress(OSError):  # it may die just now; what is under way may be an interrupt
                    connection.send((engine, "drop", None))


class ParallelEngine(Engine):
    """Rows are dealt to the workers in contiguous shares; results do not depend on where or how many they are."""

    def __init__(self, make_engine: MakeEngine, num_hosts: int, workers: Workers, slot_names: Sequence[str]) -> None:
        self.num_hosts = num_hosts
        self.slot_names = tuple(slot_names)
        self._workers, self._number = workers, next(_NUMBERS)
        count = min(workers.count, num_hosts)
        self._bounds = [num_hosts * w // count for w in range(count + 1)]
        shares = {i: Share(make_engine, last - first) for i, (first, last) in enumerate(self._shares)}
        workers.call(self._number, "make", shares)

    @property
    def _shares(self) -> list[tuple[int, int]]:
        """First row of every worker, and the row after its last."""
        return list(itertools.pairwise(self._bounds))

    def reset(self, episodes: Mapping[int, Episode]) -> dict[int, RowReport]:
        """Begin the given episodes in their rows."""
        return self._by_row("reset", episodes)

    def step(self, decisions: Mapping[int, Decision]) -> dict[int, RowReport]:
        """Apply one decision to each given row and train it for one interval."""
        return self._by_row("step", decisions)

    def test_scores(self, rows: Sequence[int]) -> dict[int, float]:
        """Score of the given rows' networks on test data, in [0, 1]."""
        return self._by_row("test_scores", dict.fromkeys(rows))

    def close(self) -> None:
        """Let the workers forget this engine; they stay for the next."""
        self._workers.drop(self._number)

    def _by_row(self, method: str, values: Mapping[int, Any]) -> dict[int, Any]:
        """Send every worker its share of the rows, and gather."""
        shares = {}
        for i, (first, last) in enumerate(self._shares):
            share = {row - first: value for row, value in values.items() if first <= row < last}
            if share:
                shares[i] = list(share) if method == "test_scores" else share
        answers = self._workers.call(self._number, method, shares)
        return {self._bounds[i] + row: value for i, answer in answers.items() for row, value in answer.items()}
