"""What every worker process of Esper does at its start, and what is said of one that has died."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import torch

from esper.allocator import keep_freed_memory
from esper.extensions import import_modules, known_modules


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Around the start of a worker: a Ctrl-C waits until the end of the block, and never reaches the worker.

    The worker inherits that, until :func:`begin_worker` lets it ignore Ctrl-C for good: what is to happen then its
    parent decides.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """Make this process a worker that is gone as soon as its parent is, however that ended."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_worker(known_modules())


def prepare_worker(modules: Sequence[str]) -> None:
    """What every worker does, whoever started it: one thread, deaf to Ctrl-C, with the user's ``modules`` imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
    keep_freed_memory()
    import_modules(modules)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is a child process"
    wait([parent.sentinel])
    os._exit(1)


def died(processes: Sequence[BaseProcess]) -> ChildProcessError:
    """The error that says which of these workers has died, and how."""
    for process in processes:
        process.join(timeout=1)
    ended = [process for process in processes if process.exitcode is not None]
    # The others may have been stopped because of the first.
    ended.sort(key=lambda process: process.exitcode in (0, -signal.SIGTERM))
    if not ended:
        return ChildProcessError(f"one of {len(processes)} worker processes no longer answers")
    code = ended[0].exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else "ended"
    hint = "; the system kills a process so when memory runs out" if code == -signal.SIGKILL else ""
    return ChildProcessError(
        f"worker process {ended[0].pid} ({ended[0].name}, one of {len(processes)}) {how}, exit code {code}{hint}"
    )
