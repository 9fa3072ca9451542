"""Growth as a callback of the transformers ``Trainer``. Needs ``esper-lite[transformers]``."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from esper.files import written_whole
from esper.growth import Growth
from esper.growth.log import numbers

FILE = "esper_growth.pt"
"""What the callback adds to a checkpoint's folder."""

_OPTIMIZER = "optimizer.pt"


class GrowthCallback(TrainerCallback):
    """Lets the model of a ``Trainer`` grow, one decision an epoch.

    Args:
        evaluate: Called with the model; returns (loss, score) on validation data, the score at most 1, or
            the loss alone where ``chance_loss`` is among the options.
        options: Passed on to :class:`~esper.growth.Growth`; ``horizon`` is the number of epochs by default.

    The growth is part of the Trainer's checkpoints: ``load_best_model_at_end=True`` brings back the seeds of the best
    one with its weights, and ``trainer.train(resume_from_checkpoint=...)`` goes on with it. In such a folder
    ``optimizer.pt`` holds the state of the host's parameters, which is all that the Trainer can load while there are no
    seeds; that of the seeds' is in ``esper_growth.pt``.

    A Trainer does not show itself to its callbacks. To have the numbers of each step (:mod:`esper.growth.log` has their
    table) in its history and with whatever it reports to::

        growing = GrowthCallback(evaluate, ...)
        trainer = Trainer(..., callbacks=[growing])
        growing.log_through(trainer)

    Attributes:
        growth: The :class:`~esper.growth.Growth`, from the start of training on.
    """

    growth: Growth

    def __init__(self, evaluate: Callable[[Any], float | tuple[float, float]], **options: Any) -> None:
        self.evaluate = evaluate
        self.options = options
        self._loading: RemovableHandle | None = None
        self._stepping = False
        self._trainer: Trainer | None = None

    def log_through(self, trainer: Trainer) -> None:
        """From now on, log every step by ``trainer.log``."""
        self._trainer = trainer

    def _log(self, row: Mapping[str, float | str], step: int) -> None:
        if self._trainer is not None:
            self._trainer.log(numbers(row))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build the growth, and go on with that of a checkpoint where the Trainer resumes from one."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError(
                "GrowthCallback trains on one device; on several, write the loop yourself with growth.parallel()"
            )
        optimizer: Optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])
        horizon = None if args.max_steps > 0 else math.ceil(args.num_train_epochs)
        self.growth = Growth(kwargs["model"], optimizer, **{"horizon": horizon, "log": self._log} | self.options)
        if state.global_step > 0:
            self._resume(args, state)
        if args.load_best_model_at_end:
            self._loading = self.growth.model.register_load_state_dict_pre_hook(
                lambda *loading: self._bring_structure(state, control)
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One step of growth."""
        self._step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the growth to the checkpoint that the Trainer has written."""
        folder = _checkpoint(args, state)
        optimizer = self.growth.optimizer
        saved = {"global_step": state.global_step, "growth": self.growth.state_dict()}
        if (folder / _OPTIMIZER).is_file():
            saved["optimizer"] = optimizer.state_dict()
            _write(folder / _OPTIMIZER, _host_state(optimizer, self.growth.network.seed_parameters()))
        _write(folder / FILE, saved)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on the model loads weights like any other."""
        if self._loading is not None:
            self._loading.remove()

    def _step(self) -> None:
        self._stepping = True  # the governor loads weights, too
        try:
            self.growth.step(lambda: self.evaluate(self.growth.model))
        finally:
            self._stepping = False

    def _bring_structure(self, state: TrainerState, control: TrainerControl) -> None:
        """Before the Trainer loads its best weights, which it does when training is over: the seeds to hold them."""
        if self._stepping or not control.should_training_stop or state.best_model_checkpoint is None:
            return
        saved = _read(Path(state.best_model_checkpoint))
        self.growth.return_to(saved["growth"]["network"])

    def _resume(self, args: TrainingArguments, state: TrainerState) -> None:
        """The Trainer has loaded the host's weights and the optimizer's state of its parameters."""
        folder = Path(args.resume_from_checkpoint or _checkpoint(args, state))
        if not (folder / FILE).is_file():
            raise ValueError(
                f"the Trainer resumes at step {state.global_step}, but there is no '{FILE}' in '{folder}': give "
                "TrainingArguments(resume_from_checkpoint=...) the same folder as trainer.train(), one that was "
                "written with a GrowthCallback"
            )
        saved = _read(folder)
        if saved["global_step"] != state.global_step:
            raise ValueError(
                f"the Trainer resumes at step {state.global_step}, but '{folder}' is of step {saved['global_step']}; "
                "give TrainingArguments(resume_from_checkpoint=...) the same folder as trainer.train()"
            )
        self.growth.load_state_dict(saved["growth"])
        if "optimizer" in saved:
            self.growth.optimizer.load_state_dict(saved["optimizer"])
        if len(self.growth.history) < math.floor(state.epoch or 0):
            self._step()  # saved at the last batch of an epoch, before the epoch's own end


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _read(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    return saved


def _write(path: Path, state: Any) -> None:
    with written_whole(path) as unfinished:
        torch.save(state, unfinished)


def _host_state(optimizer: Optimizer, seeds: Collection[nn.Parameter]) -> dict[str, Any]:
    """The optimizer's state as if it had never held ``seeds``."""
    full = optimizer.state_dict()
    gone = {id(p) for p in seeds}
    groups = []
    numbers: dict[int, int] = {}
    for group, saved in zip(optimizer.param_groups, full["param_groups"], strict=True):
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        numbers |= {saved["params"][i]: len(numbers) + n for n, i in enumerate(kept)}
        named = {key: [saved[key][i] for i in kept] for key in ("params", "param_names") if key in saved}
        groups.append(saved | named | {"params": [numbers[number] for number in named["params"]]})
    return {"state": {numbers[n]: value for n, value in full["state"].items() if n in numbers}, "param_groups": groups}
