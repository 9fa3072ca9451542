"""An engine spread over worker processes, each with one thread: two of them beat one process with two threads.

The workers are started once, by the first engine that needs them, and serve every further one of this process.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from esper.actions import Decision
from esper.env.engine.engine import Engine, RowReport
from esper.env.episode import Episode
from esper.workers import begin_worker, died, interrupts_held_back

MakeEngine = Callable[[int], Engine]
"""Builds an engine of the given number of hosts; must be picklable (a partial of a class, say)."""


class _Worker(NamedTuple):
    process: BaseProcess
    connection: Connection


_WORKERS: list[_Worker] = []
"""The workers of this process; share i of every engine is with worker i."""

_TURN = threading.Lock()
"""Held by the call that the workers answer."""

_NUMBERS = itertools.count()
"""The workers know engines by number."""

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
            if method == "drop":
                engines.pop(number, None)
                continue
            connection.send(_answer(engines, number, method, argument))
        except (EOFError, OSError):
            return


def _answer(engines: dict[int, Engine], number: int, method: str, argument: Any) -> tuple[bool, Any]:
    """Whether a call has succeeded, and its result or its error."""
    try:
        if method == "make":
            make_engine, num_hosts = argument
            engines[number] = make_engine(num_hosts)
            return True, None
        return True, getattr(engines[number], method)(argument)
    except Exception as error:  # travels to the parent, which raises it
        return False, error


class ParallelEngine(Engine):
    """Rows are dealt to ``num_workers`` processes in contiguous shares; results do not depend on the number."""

    def __init__(self, make_engine: MakeEngine, num_hosts: int, num_workers: int, slot_names: Sequence[str]) -> None:
        if not 1 <= num_workers <= num_hosts:
            raise ValueError(f"num_workers must be between 1 and the number of hosts ({num_hosts}), got {num_workers}")
        self.num_hosts = num_hosts
        self.slot_names = tuple(slot_names)
        self._bounds = [num_hosts * w // num_workers for w in range(num_workers + 1)]
        self._number = next(_NUMBERS)
        self._workers = _workers(num_workers)
        self._call("make", {i: (make_engine, last - first) for i, (first, last) in enumerate(self._shares)})

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
        for process, connection in self._workers:
            if process.is_alive():
                with _TURN, suppress(OSError):  # it may die just now; what is under way may be an interrupt
                    connection.send((self._number, "drop", None))
        self._workers = []

    def _by_row(self, method: str, values: Mapping[int, Any]) -> dict[int, Any]:
        """Send every worker its share of the rows, and gather."""
        shares = {}
        for i, (first, last) in enumerate(self._shares):
            share = {row - first: value for row, value in values.items() if first <= row < last}
            if share:
                shares[i] = list(share) if method == "test_scores" else share
        answers = self._call(method, shares)
        return {self._bounds[i] + row: value for i, answer in answers.items() for row, value in answer.items()}

    def _call(self, method: str, arguments: Mapping[int, Any]) -> dict[int, Any]:
        """Call workers by number, all at once; an error in one is raised here after all have answered.

        Raises:
            ChildProcessError: When a worker has died.
        """
        asked = [self._workers[i] for i in arguments]
        with _TURN:
            try:
                for (_, connection), argument in zip(asked, arguments.values(), strict=True):
                    connection.send((self._number, method, argument))
                answers = [connection.recv() for _, connection in asked]
            except BaseException as error:  # an answer that nobody waits for must not be taken for that of a later call
                lost = died([process for process, _ in asked]) if isinstance(error, (EOFError, OSError)) else None
                for process, _ in asked:
                    process.kill()
                    process.join()
                if lost is None:
                    raise
                raise lost from error
        for succeeded, answer in answers:
            if not succeeded:
                raise answer
        return dict(zip(arguments, (answer for _, answer in answers), strict=True))
