"""Where the time of an update goes."""

from __future__ import annotations

import time
from collections.abc import Callable

PHASES = ("environment", "policy", "copy", "update")
"""Stepping the environments; acting, and judging what was done; handing observations, actions and rows over between
the two; learning."""


class Phases:
    """Adds up seconds by phase: on the clock, and on the processor.

    Args:
        processor: Reads the processor's clock: by default that of this process, all of its threads.
    """

    def __init__(self, processor: Callable[[], float] = time.process_time) -> None:
        self._read_processor = processor
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.processor_seconds = dict.fromkeys(PHASES, 0.0)
        self.begin()

    def begin(self) -> None:
        """Leave out the time since the last phase ended."""
        self._clock, self._processor = time.perf_counter(), self._read_processor()

    def end(self, phase: str) -> None:
        """The time since the last phase ended was one of this kind."""
        clock, processor = time.perf_counter(), self._read_processor()
        self.seconds[phase] += clock - self._clock
        self.processor_seconds[phase] += processor - self._processor
        self._clock, self._processor = clock, processor

    def metrics(self) -> dict[str, float]:
        """``seconds/{phase}`` and ``processor_seconds/{phase}``."""
        return {
            f"{name}/{phase}": seconds
            for name, of_phase in (("seconds", self.seconds), ("processor_seconds", self.processor_seconds))
            for phase, seconds in of_phase.items()
        }
