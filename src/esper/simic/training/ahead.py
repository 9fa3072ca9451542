"""A rollout that is collected on a thread of its own, while the policy learns from the one before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Work on a thread, which begins at once.

    Args:
        work: What is to be done; it takes a function that says whether to stop, and asks it often.
        should_stop: Whether to stop.

    The thread never keeps a process from ending.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], T], should_stop: Callable[[], bool]) -> None:
        self._abandoned = threading.Event()
        self._result: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, args=(work, should_stop), daemon=True, name="esper-rollout")
        self._thread.start()

    def _run(self, work: Callable[[Callable[[], bool]], T], should_stop: Callable[[], bool]) -> None:
        try:
            self._result.set_result(work(lambda: self._abandoned.is_set() or should_stop()))
        except BaseException as error:  # is raised where the result is waited for
            self._result.set_exception(error)

    def result(self) -> T:
        """Wait for what came of the work; whatever it raised is raised here."""
        return self._result.result()

    def abandon(self) -> None:
        """Ask it to stop, and wait until it has."""
        self._abandoned.set()
        self._thread.join()
