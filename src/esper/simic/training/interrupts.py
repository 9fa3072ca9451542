"""Ctrl-C during training: the first press asks, the second insists."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class InterruptGuard:
    """While entered, the first Ctrl-C only sets :attr:`requested`; the second raises ``KeyboardInterrupt`` at once.

    Outside the main thread signals cannot be handled, and nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def __enter__(self) -> InterruptGuard:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr, flush=True)
