"""What auditions in an empty slot: a setting of a growing network, known to whoever decides by it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Auditions:
    """When, how long and which kinds of seeds audition in a slot that is dormant.

    A seed in isolation is neither seen nor felt, so several can train in one slot at once and be compared on the very
    same host. An audition begins at the second decision (the first interval is the host's alone), and again, with new
    candidates, once another seed has been blended in or has gone, since the host is another one then.

    Args:
        decisions: Length of an audition, in decisions. When it ends, those that are left wait as they are, untrained
            and at no cost, until one is germinated or the next audition begins.
        blueprints: Names of the kinds that take part; ``None`` for all that the slot, the allowed blueprints and the
            budget admit. The budget caps what grows: a candidate must be affordable by itself, and does not count.
        halving: Whether the worse half goes after each decision but the last (successive halving, Jamieson and
            Talwalkar, AISTATS 2016): it costs less, and of the worse half there are only earlier results.

    Raises:
        ValueError: If it would last no decision.
    """

    decisions: int = 2
    blueprints: tuple[str, ...] | None = None
    halving: bool = True

    def __post_init__(self) -> None:
        if self.decisions < 1:
            raise ValueError(f"an audition lasts 1 decision or more, got decisions={self.decisions}")

    def invites(self, blueprint: str) -> bool:
        """Whether this kind takes part."""
        return self.blueprints is None or blueprint in self.blueprints
