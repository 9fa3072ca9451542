"""The directory of a run: config.json, metrics.jsonl, TensorBoard events, checkpoint/ and best/."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.files import from_plain, locked, read_json, write_json_atomic, written_whole
from esper.simic.schedules import plain, plain_fields
from esper.simic.training.checkpoint import find_checkpoint, holds_checkpoint, load_state, save_checkpoint
from esper.simic.training.config import TrainConfig
from esper.tamiyo.networks.config import NetworkConfig
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tracking import TensorBoard, Tracking

logger = logging.getLogger(__name__)

_FIXED = (
    "seed",
    "network",
    "normalize_observations",
    "normalize_keys",
    "normalize_rewards",
    "paired",
    "overlap",
    "ppo.gamma",
)
"""What a run keeps for life: what its weights, its statistics, its draws and the meaning of its values hang on."""


@dataclass(frozen=True)
class RunDescription:
    """What ``config.json`` says of a run."""

    train: TrainConfig
    """The training options."""
    network: NetworkConfig
    """The sizes of the network."""
    environment: str
    """What the run was trained on, see :func:`esper.simic.environments.named`."""
    normalizes_observations: bool
    """Whether the policy has an observation normaliser."""


class RunDirectory:
    """Everything a run leaves behind.

    Args:
        path: The directory; made if it is not there.

    ``config.json`` holds a :class:`RunDescription`. ``metrics.jsonl`` has one row per update, NaN as ``null``.
    ``best`` is the checkpoint of the update whose evaluation gave the greatest return, if there are evaluations; the
    state in it is that ``update`` and ``return``.
    From its beginning to :meth:`close` it is held against other processes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint"
        self.best = self.path / "best"
        self._tracking: Tracking | None = None
        self._held = ExitStack()

    def begin(self, config: TrainConfig, policy: LSTMPolicyBundle, environment: str) -> None:
        """Start a new run here.

        Raises:
            ValueError: When a run is here already, or another process writes here.
            OSError: When the directory cannot be written.
        """
        self._held.enter_context(locked(self.path))
        if holds_checkpoint(self.checkpoint):
            raise ValueError(f"'{self.path}' already holds a run; resume it, or choose another directory")
        description = {
            "train": dataclasses.asdict(config, dict_factory=plain_fields),
            "network": policy.network.config.to_json(),
            "environment": environment,
            "normalizes_observations": policy.observation_normalizer is not None,
        }
        write_json_atomic(self.config_file, description)
        self._track(config)

    def resume(self, config: TrainConfig, environment: str) -> tuple[Path, dict[str, Any]]:
        """Go on with the run that is here; where its checkpoint lies, and the state in it.

        What was logged after the checkpoint is dropped, for it will happen again. From now on ``config.json`` has the
        options of ``config``; which are others than before is logged.

        Raises:
            ValueError: When there is no run or no whole checkpoint here, the run had another environment or other
                options that cannot change, or another process writes here.
            OSError: When the directory cannot be read and written.
        """
        self._held.enter_context(locked(self.path))
        before = read_config(self.path)
        self._check_environment(before.environment, environment)
        changed = self._changed(before.train, config)
        checkpoint = find_checkpoint(self.checkpoint)
        state = load_state(checkpoint)
        if changed:
            logger.warning("the run in '%s' goes on with %s", self.path, ", ".join(changed))
            write_json_atomic(
                self.config_file,
                read_json(self.config_file) | {"train": dataclasses.asdict(config, dict_factory=plain_fields)},
            )
        self._drop_rows_after(state["update"])
        self._track(config, first_update=state["update"] + 1)
        return checkpoint, state

    def _track(self, config: TrainConfig, first_update: int | None = None) -> None:
        options = dataclasses.asdict(config, dict_factory=plain_fields)
        self._tracking = Tracking(config.track, self.path.name, options, TensorBoard(self.path, first_update))

    def _check_environment(self, then: str, now: str) -> None:
        if then != now:
            raise ValueError(
                f"the run in '{self.path}' was trained on {then}, and is to be resumed on {now}; give the same "
                "environment, or begin another run with its policy: train(envs, policy=load_bundle(run_dir))"
            )

    def _changed(self, before: TrainConfig, config: TrainConfig) -> list[str]:
        """What is another option than before, each with what it was.

        Raises:
            ValueError: For one that cannot change.
        """
        old, new = _options(before), _options(config)
        changed = [name for name in new if new[name] != old[name]]
        for name in changed:
            if name in _FIXED or name.startswith("network."):
                raise ValueError(
                    f"the run in '{self.path}' was started with {name}={old[name]}, and is to be resumed with "
                    f"{name}={new[name]}; what cannot change is {', '.join(_FIXED)}"
                )
        return [f"{name}={new[name]} (it was {old[name]})" for name in changed]

    def _drop_rows_after(self, update: int) -> None:
        rows = self.metrics_file.read_text(encoding="utf-8").splitlines() if self.metrics_file.exists() else []
        kept = [row for row in rows if _update_of(row) <= update]
        with written_whole(self.metrics_file) as fresh:
            fresh.write_text("".join(row + "\n" for row in kept), encoding="utf-8")

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append one row of metrics to metrics.jsonl, and tell the trackers."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        assert self._tracking is not None, "begin() or resume() comes first"
        del row["update"]
        self._tracking.log(row, int(metrics["update"]))

    def save(self, policy: LSTMPolicyBundle, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint, and the best policy if this is it."""
        save_checkpoint(self.checkpoint, policy, state)
        self.keep_best(policy, state)

    def keep_best(self, policy: LSTMPolicyBundle, state: Mapping[str, Any]) -> None:
        """Replace the best policy if ``state`` says that this is it; its checkpoint comes before, and so decides."""
        if state["best"] is not None and state["best"]["update"] == state["update"]:
            save_checkpoint(self.best, policy, state["best"])

    def close(self) -> None:
        """Finish the TensorBoard file, and let go of the directory."""
        with self._held:
            if self._tracking is not None:
                self._tracking.finish()


def read_config(path: str | os.PathLike[str]) -> RunDescription:
    """What ``config.json`` in a run directory says.

    Raises:
        ValueError: When there is none, or it is damaged; the message names the field.
        OSError: When it cannot be read.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(f"expected a run in '{path}', but there is no '{file}'")
    return from_plain(RunDescription, read_json(file), file)


def _options(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every option by the name that the command line has for it ("ppo.gamma")."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        options |= _options(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: plain(value)}
    return options


def _update_of(row: str) -> float:
    """The update of a row of metrics.jsonl; a row that was cut off in writing, or is none, counts as the last."""
    try:
        return float(json.loads(row)["update"])
    except (ValueError, KeyError, TypeError):
        return math.inf
