"""Growth as a Lightning callback. Needs ``esper-lite[lightning]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from torch.optim.swa_utils import AveragedModel

from esper.growth import Growth
from esper.growth.log import numbers
from esper.growth.saving import acting_slots, attach, network_as_evaluated
from esper.network.placing import is_of_seed


class GrowthCallback(lightning.Callback):
    """Lets a network inside a ``LightningModule`` grow, one decision an epoch.

    The growth is saved in Lightning's checkpoints: ``trainer.fit(..., ckpt_path=...)`` goes on with it, and
    ``trainer.test(..., ckpt_path="best")`` (likewise ``validate`` and ``predict``) tests the network of the checkpoint,
    its seeds included, in a new process as well if the trainer has this callback there. Averages of weights that other
    callbacks keep (``EMAWeightAveraging``, ``StochasticWeightAveraging``) grow along.

    The numbers of each step (:mod:`esper.growth.log` has their table) go to the trainer's loggers, by
    ``LightningModule.log_dict``, so that other callbacks can watch them: ``ModelCheckpoint(monitor="growth/score")``.

    Args:
        evaluate: Called with the ``LightningModule``; returns (loss, score) on validation data, the score at most 1, or
            the loss alone where ``chance_loss`` is among the options.
        host: Name of the attribute of the ``LightningModule`` that holds the network to grow.
        options: Passed on to :class:`~esper.growth.Growth`; ``horizon`` is the trainer's number of epochs by default.
    """

    def __init__(
        self, evaluate: Callable[[Any], float | tuple[float, float]], *, host: str = "model", **options: Any
    ) -> None:
        self.evaluate = evaluate
        self.host = host
        self.options = options
        self._growing: Growth | None = None
        self._loaded: dict[str, Any] | None = None
        self._averaged_seeds: dict[str, torch.Tensor] = {}

    @property
    def growth(self) -> Growth:
        """The growth, from the start of ``fit`` on.

        Raises:
            RuntimeError: Before.
        """
        if self._growing is None:
            raise RuntimeError("there is no growth before trainer.fit() has started")
        return self._growing

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """See to it that the seeds of a checkpoint are there before Lightning loads its weights."""
        load = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            load(checkpoint)
            self._bring_structure(pl_module, stage, checkpoint)

        pl_module.on_load_checkpoint = on_load_checkpoint  # type: ignore[method-assign]

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Take the hook of :meth:`setup` off."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def _bring_structure(self, module: lightning.LightningModule, stage: str, checkpoint: dict[str, Any]) -> None:
        """Before a fit goes on there is no optimizer yet: the seeds come with the growth's own state, weights and all.

        To evaluate, seeds that are there give way to those of the checkpoint, the best one for instance. One that was
        saved after the decision at the end of an epoch, which no training has followed, means the network before it:
        that one was evaluated.
        """
        saved = checkpoint["callbacks"].get(self.state_key)
        if saved is None:
            return
        saved_weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = weights = _of_host(saved_weights)
        if stage == "fit":
            if "current_model_state" in checkpoint:  # WeightAveraging has put the average into "state_dict"
                self._averaged_seeds = {name: value for name, value in saved_weights.items() if is_of_seed(name)}
                checkpoint["current_model_state"] = _of_host(checkpoint["current_model_state"])
            return
        self._become(module.get_submodule(self.host), network_as_evaluated(saved))
        ours = {name: value for name, value in module.state_dict().items() if is_of_seed(name)}
        # another callback may have put averages in; a seed that the last decision took out has none in there
        averaged = {name: saved_weights[name] for name, _ in module.named_parameters() if name in saved_weights}
        weights |= ours | {name: value for name, value in averaged.items() if name in ours}

    def _become(self, host: torch.nn.Module, state: dict[str, Any]) -> None:
        """Give the host the seeds of this state; in a new process there is no growth that could do so."""
        if self._growing is not None and self._growing.model is host:
            self._growing.return_to(state)
            return
        for slot in acting_slots(host):
            slot.withdraw()
        seeds = {name: entry for name, entry in state["slots"].items() if "weights" in entry}
        attach(host, list(state["slots"]), seeds, self.options["example_input"])

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Build the growth, before Lightning restores the optimizer of a checkpoint."""
        if trainer.world_size > 1:
            raise ValueError(
                "GrowthCallback trains on one device, but the trainer has "
                f"{trainer.world_size}; on several, write the loop yourself with growth.parallel()"
            )
        if len(trainer.optimizers) != 1:
            raise ValueError(f"GrowthCallback needs one optimizer, got {len(trainer.optimizers)}")
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        host = pl_module.get_submodule(self.host)

        def log(row: Mapping[str, float | str], step: int) -> None:
            pl_module.log_dict(numbers(row))

        self._growing = Growth(host, trainer.optimizers[0], **{"horizon": epochs, "log": log} | self.options)
        averages = [
            held
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            for held in vars(callback).values()
            if isinstance(held, AveragedModel | type(pl_module)) and held is not pl_module
        ]
        for averaged in averages:
            self._growing.follow(averaged)
        if self._loaded is not None:
            self.growth.load_state_dict(self._loaded)
            self._loaded = None
        if self._averaged_seeds:
            for averaged in averages:
                averaged.load_state_dict(
                    {f"module.{name}": value for name, value in self._averaged_seeds.items()}, strict=False
                )
            self._averaged_seeds = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """One step of growth."""
        self.growth.step(lambda: self.evaluate(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Saved in every checkpoint, once there is a growth."""
        return {} if self._growing is None else self._growing.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until ``fit`` has built the optimizer."""
        self._loaded = state_dict


def _of_host(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if not is_of_seed(name)}
