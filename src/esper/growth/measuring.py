"""What ``evaluate`` says of the network, as it is and with seeds acting otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from esper.growth.averages import Follower
from esper.growth.evaluate import Evaluate, collect, random_state_kept
from esper.growth.judgement import Judgement, judge
from esper.growth.probe import uncompiled
from esper.network.attribution import contributions
from esper.network.growing_network import GrowingNetwork


class Measured(NamedTuple):
    """What seeds contribute, and what it took to find out."""

    contributions: dict[str, float]
    """Slot name → points of score."""
    evaluations: int
    seconds: float


class Measuring:
    """Asks ``evaluate``, and whoever measures contributions, on all ranks alike.

    Args:
        network: What is measured.
        contributions: As in :class:`~esper.growth.Growth`.
        chance_loss: As there.
        followers: Copies that grow along; they act as the network does while contributions are measured.
    """

    def __init__(
        self,
        network: GrowingNetwork,
        contributions: bool | Evaluate,
        chance_loss: float | None,
        followers: Sequence[Follower],
    ) -> None:
        self._network = network
        self._contributions = contributions
        self._chance_loss = chance_loss
        self._followers = followers

    def __call__(self, evaluate: Evaluate, *, finite: bool, name: str = "evaluate") -> tuple[float, float]:
        """Mean over the ranks of the loss and score that ``evaluate`` returns, checked on all of them."""
        return collect(evaluate, chance_loss=self._chance_loss, finite=finite, name=name)

    def contributions(self, evaluate: Evaluate, as_is: tuple[float, float]) -> Measured:
        """Contributions by slot, of the seeds that are undecided; none where they are not to be measured."""
        if self._contributions is False:
            return Measured({}, 0, 0.0)
        with self._asking(evaluate) as (asked, baseline, taken):
            found = contributions(self._network, asked, as_is if baseline else None)
        return Measured({self._network.slot_names[i]: value for i, value in found.items()}, *taken())

    def judge(
        self, evaluate: Evaluate, as_is: tuple[float, float], rent: float
    ) -> tuple[list[Judgement], tuple[float, float], Measured]:
        """Judgements on all seeds, the evaluation of the network as they leave it, and the contributions."""
        network = self._network
        with self._asking(evaluate) as (asked, baseline, taken):
            if self._contributions is False:
                judged = judge(network, rent, None)
            else:
                judged = judge(network, rent, asked, as_is if baseline else None)
            going = [one.slot for one in judged if not one.stays and network.slots[one.slot].alpha > 0]
            with ExitStack() as gone:
                for slot in going:
                    gone.enter_context(network.switched_off(slot))
                result = self(evaluate, finite=True) if going else as_is
        evaluations, seconds = taken()
        names = network.slot_names
        found = {names[one.slot]: one.contribution for one in judged if one.contribution is not None}
        return judged, result, Measured(found, evaluations + bool(going), seconds)

    @contextmanager
    def _asking(
        self, evaluate: Evaluate
    ) -> Iterator[tuple[Callable[[], tuple[float, float]], bool, Callable[[], tuple[int, float]]]]:
        """What measures contributions, whether that is ``evaluate`` itself, and a count of evaluations and seconds."""
        asked = evaluate if isinstance(self._contributions, bool) else self._contributions
        name = "evaluate" if asked is evaluate else "contributions"
        count, began = 0, time.perf_counter()

        def answer() -> tuple[float, float]:
            nonlocal count
            count += 1
            with ExitStack() as alike:
                for follower in self._followers:
                    alike.enter_context(follower.as_live())
                return self(asked, finite=False, name=name)

        with uncompiled(), random_state_kept(self._network.model):
            yield answer, asked is evaluate, lambda: (count, time.perf_counter() - began)
