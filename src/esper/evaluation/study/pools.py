"""Where the units of a study run: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from esper import cluster
from esper.env.engine.ray_workers import dismiss_actors
from esper.extensions import known_modules
from esper.workers import begin_worker, died, interrupts_held_back, prepare_worker

Submit = Callable[..., Future[Any]]
"""Takes a function and its arguments; what comes of the call."""

RETRIES = 3
"""How often a unit whose process has died is begun anew on a Ray cluster."""


@contextmanager
def local_pool(workers: int) -> Iterator[Submit]:
    """Processes of one thread each, which end with the block.

    Raises:
        ChildProcessError: When one has died.
    """
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=begin_worker)
    others = multiprocessing.active_children()
    started: list[BaseProcess] = []

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        with interrupts_held_back():  # it is here that the pool starts its workers
            future = pool.submit(function, *arguments)
            started.extend(p for p in multiprocessing.active_children() if p not in others and p not in started)
        return future

    try:
        yield submit
    except BrokenProcessPool as error:
        raise died(started) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:
            process.terminate()


@contextmanager
def ray_pool(workers: int, address: str | None = None) -> Iterator[Submit]:
    """Tasks of one thread each on the Ray cluster at ``address``, or on one of this machine; what is open is cancelled.

    Policies and data that are named by a path must be there on every machine. That too few CPUs
    are left, where one has gone, is said.

    Raises:
        ValueError: When Ray is not installed, or for a cluster with too few CPUs.
        ConnectionError: When no cluster answers.
        ChildProcessError: When the process of a task has died :data:`RETRIES` times and once more.
    """
    ray = cluster.installed_ray()
    dismiss_actors()  # who would keep CPUs that the tasks wait for
    cluster.connect(workers, address)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_prepared)
    submitted: list[Any] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(cluster.PATIENCE):
            if cluster.say_what_is_missing(workers):
                return

    def submit(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        submitted.append(task.remote(known_modules(), function, *arguments))
        return submitted[-1].future()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield submit
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        why = " ".join(str(error).split())
        raise ChildProcessError(f"a Ray worker died {RETRIES + 1} times over the same piece: {why}") from error
    finally:
        ended.set()
        for reference in submitted:
            ray.cancel(reference, force=True)


def _prepared(modules: Sequence[str], function: Callable[..., Any], *arguments: Any) -> Any:
    prepare_worker(modules)
    return function(*arguments)
