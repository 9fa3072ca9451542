"""The directory of a run: config.json, metrics.jsonl, TensorBoard events and checkpoint/."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from esper.files import from_plain, locked, read_json, write_json_atomic, written_whole
from esper.simic.training.checkpoint import find_checkpoint, holds_checkpoint, load_state, save_checkpoint
from esper.simic.training.config import TrainConfig
from esper.tamiyo.networks.config import NetworkConfig
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle

_MAY_CHANGE = {"total_steps", "updates", "checkpoint_every", "device"}


@dataclass(frozen=True)
class RunDescription:
    """What ``config.json`` says of a run."""

    train: TrainConfig
    """The training options."""
    network: NetworkConfig
    """The sizes of the network."""
    environment: str | None
    """Id of what the run was trained on, where it was given by one."""
    normalizes_observations: bool
    """Whether the policy has an observation normaliser."""


class RunDirectory:
    """Everything a run leaves behind.

    Args:
        path: The directory; made if it is not there.

    ``config.json`` holds a :class:`RunDescription`. ``metrics.jsonl`` has one row per update, NaN as ``null``.
    From its beginning to :meth:`close` it is held against other processes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint"
        self._writer: SummaryWriter | None = None
        self._held = ExitStack()

    def begin(self, config: TrainConfig, policy: LSTMPolicyBundle, environment: str | None) -> None:
        """Start a new run here.

        Raises:
            ValueError: When a run is here already, or another process writes here.
            OSError: When the directory cannot be written.
        """
        self._held.enter_context(locked(self.path))
        if holds_checkpoint(self.checkpoint):
            raise ValueError(f"'{self.path}' already holds a run; resume it, or choose another directory")
        description = {
            "train": dataclasses.asdict(config),
            "network": policy.network.config.to_json(),
            "environment": environment,
            "normalizes_observations": policy.observation_normalizer is not None,
        }
        write_json_atomic(self.config_file, description)
        self._writer = SummaryWriter(str(self.path))

    def resume(self, config: TrainConfig) -> tuple[Path, dict[str, Any]]:
        """Go on with the run that is here; where its checkpoint lies, and the state in it.

        What was logged after the checkpoint is dropped, for it will happen again.

        Raises:
            ValueError: When there is no run or no whole checkpoint here, the run had other options, or another process
                writes here.
            OSError: When the directory cannot be read and written.
        """
        self._held.enter_context(locked(self.path))
        self._check_config(config)
        checkpoint = find_checkpoint(self.checkpoint)
        state = load_state(checkpoint)
        self._drop_rows_after(state["update"])
        self._writer = SummaryWriter(str(self.path), purge_step=state["update"] + 1)
        return checkpoint, state

    def _check_config(self, config: TrainConfig) -> None:
        before = read_config(self.path).train
        for field in dataclasses.fields(TrainConfig):
            then, now = getattr(before, field.name), getattr(config, field.name)
            if field.name not in _MAY_CHANGE and then != now:
                raise ValueError(
                    f"the run in '{self.path}' was started with {field.name}={then}, and is to be resumed with "
                    f"{field.name}={now}; give the same options (only {', '.join(sorted(_MAY_CHANGE))} may change)"
                )

    def _drop_rows_after(self, update: int) -> None:
        rows = self.metrics_file.read_text(encoding="utf-8").splitlines() if self.metrics_file.exists() else []
        kept = [row for row in rows if _update_of(row) <= update]
        with written_whole(self.metrics_file) as fresh:
            fresh.write_text("".join(row + "\n" for row in kept), encoding="utf-8")

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append one row of metrics, to metrics.jsonl and to TensorBoard."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        assert self._writer is not None, "begin() or resume() comes first"
        for name, value in row.items():
            if value is not None and name != "update":
                self._writer.add_scalar(name, value, int(metrics["update"]))

    def save(self, policy: LSTMPolicyBundle, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        save_checkpoint(self.checkpoint, policy, state)

    def close(self) -> None:
        """Finish the TensorBoard file, and let go of the directory."""
        with self._held:
            if self._writer is not None:
                self._writer.close()


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


def _update_of(row: str) -> float:
    """The update of a row of metrics.jsonl; a row that was cut off in writing, or is none, counts as the last."""
    try:
        return float(json.loads(row)["update"])
    except (ValueError, KeyError, TypeError):
        return math.inf
