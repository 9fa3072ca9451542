"""How a command that was stopped says how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console


@contextmanager
def resumable(console: Console, command: str) -> Iterator[None]:
    """When the block is stopped by a signal, for a dead worker or a full disk, print the ``command`` that goes on."""
    try:
        yield
    except (FileExistsError, FileNotFoundError):  # there is nothing to go on with
        raise
    except (KeyboardInterrupt, OSError, MemoryError):
        with suppress(OSError):  # the terminal may be gone
            console.print(f"stopped; go on with: {command}", soft_wrap=True, highlight=False)
        raise
