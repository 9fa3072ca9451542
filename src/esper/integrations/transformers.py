"""Growth as a callback of the transformers ``Trainer``. Needs ``esper-lite[transformers]``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from esper.growth import Growth


class GrowthCallback(TrainerCallback):
    """Lets the model of a ``Trainer`` grow, one decision an epoch.

    Args:
        evaluate: Called with the model; returns (loss, score) on validation data, the score in [0, 1].
        options: Passed on to :class:`~esper.growth.Growth`; ``horizon`` is the number of epochs by default.

    The Trainer's own checkpoints hold the host only: save ``growth.state_dict()`` beside them.

    Attributes:
        growth: The :class:`~esper.growth.Growth`, from the start of training on.
    """

    growth: Growth

    def __init__(self, evaluate: Callable[[Any], tuple[float, float]], **options: Any) -> None:
        self.evaluate = evaluate
        self.options = options

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build the growth."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError(
                "GrowthCallback trains on one device; on several, write the loop yourself with growth.parallel()"
            )
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        horizon = None if args.max_steps > 0 else math.ceil(args.num_train_epochs)
        self.growth = Growth(kwargs["model"], optimizer, **{"horizon": horizon} | self.options)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One step of growth."""
        self.growth.step(lambda: self.evaluate(kwargs["model"]))
