"""Where the time of an update goes."""

from __future__ import annotations

import time

PHASES = ("environment", "policy", "copy", "update")
"""Stepping the environments; acting, and judging what was done; handing observations, actions and rows over between
the two; learning."""


class Phases:
    """Adds up seconds by phase: on the clock, and of this process on the processor (all of its threads)."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew, now."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.processor_seconds = dict.fromkeys(PHASES, 0.0)
        self.begin()

    def begin(self) -> None:
        """Leave out the time since the last phase ended."""
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def end(self, phase: str) -> None:
        """The time since the last phase ended was one of this kind."""
        clock, processor = time.perf_counter(), time.process_time()
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
