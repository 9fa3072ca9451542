"""An engine spread over worker processes, each with one thread: two of them beat one process with two threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from esper.actions import Decision
from esper.allocator import keep_freed_memory
from esper.env.engine.engine import Engine, RowReport
from esper.env.episode import Episode

MakeEngine = Callable[[int], Engine]
"""Builds an engine of the given number of hosts; must be picklable (a partial of a class, say)."""


def _serve(connection: Connection, make_engine: MakeEngine, num_hosts: int) -> None:
    """Main loop of a worker: answer calls until told to stop."""
    torch.set_num_threads(1)
    keep_freed_memory()
    engine = make_engine(num_hosts)
    while True:
        try:
            method, argument = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if method == "stop":
            return
        try:
            connection.send((True, getattr(engine, method)(argument)))
        except KeyboardInterrupt:
            return
        except Exception as error:  # travels to the parent, which raises it
            connection.send((False, error))


class ParallelEngine(Engine):
    """Rows are dealt to ``num_workers`` processes in contiguous shares; results do not depend on the number."""

    def __init__(self, make_engine: MakeEngine, num_hosts: int, num_workers: int, slot_names: Sequence[str]) -> None:
        if not 1 <= num_workers <= num_hosts:
            raise ValueError(f"num_workers must be between 1 and the number of hosts ({num_hosts}), got {num_workers}")
        self.num_hosts = num_hosts
        self.slot_names = tuple(slot_names)
        self._bounds = [num_hosts * w // num_workers for w in range(num_workers + 1)]
        self._workers = []
        context = multiprocessing.get_context("spawn")
        for first, last in zip(self._bounds, self._bounds[1:], strict=False):
            parent, child = context.Pipe()
            process = context.Process(target=_serve, args=(child, make_engine, last - first), daemon=True)
            process.start()
            child.close()
            self._workers.append((process, parent))

    def reset(self, episodes: Mapping[int, Episode]) -> dict[int, RowReport]:
        """Begin the given episodes in their rows."""
        return self._call("reset", episodes)

    def step(self, decisions: Mapping[int, Decision]) -> dict[int, RowReport]:
        """Apply one decision to each given row and train it for one interval."""
        return self._call("step", decisions)

    def test_scores(self, rows: Sequence[int]) -> dict[int, float]:
        """Score of the given rows' networks on test data, in [0, 1]."""
        return self._call("test_scores", dict.fromkeys(rows))

    def close(self) -> None:
        """Stop the workers."""
        for process, connection in self._workers:
            if process.is_alive():
                connection.send(("stop", None))
            process.join(timeout=5)
            connection.close()
        self._workers = []

    def _call(self, method: str, by_row: Mapping[int, Any]) -> dict[int, Any]:
        """Send every worker its share, then gather; an error in a worker is raised here after all have answered."""
        asked = []
        for (_, connection), first, last in zip(self._workers, self._bounds, self._bounds[1:], strict=False):
            share = {row - first: value for row, value in by_row.items() if first <= row < last}
            if share:
                connection.send((method, list(share) if method == "test_scores" else share))
                asked.append((connection, first))
        answers = [(first, *connection.recv()) for connection, first in asked]
        for _, succeeded, answer in answers:
            if not succeeded:
                raise answer
        return {first + row: value for first, _, answer in answers for row, value in answer.items()}
