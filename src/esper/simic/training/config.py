"""What a training run takes; every field is an option of the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from esper.simic.ppo import PPOConfig
from esper.tamiyo.networks.config import NetworkOptions


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    seed: int = 0
    """Decides weights, environments, sampling and minibatches: the same seed gives the same run, bit for bit."""
    total_steps: int = 100_000
    """Environment steps to learn from, over all environments; rounded up to whole updates."""
    updates: int | None = None
    """Number of updates, in place of `total_steps`."""
    num_envs: int = 16
    """Environments side by side, when an environment is given by its id."""
    num_steps: int = 128
    """Steps of each environment between two updates."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """How the policy learns."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    """Sizes of the network, when no policy is given."""
    normalize_observations: bool = True
    """Shift and scale features by their running mean and deviation, when no policy is given."""
    normalize_keys: tuple[str, ...] | None = None
    """Parts of the observation, by their paths, whose features `normalize_observations` is about; those of others are
    read as they are. `None`: all."""
    normalize_rewards: bool = True
    """Divide rewards by the running deviation of their discounted sums, so that returns are of order one
    (`RewardScaler`)."""
    noise_correlation: float = 0.0
    """Of numbers (Box actions): correlation between the noise of a step and that of the next in a rollout, from 0
    (drawn anew every time) to below 1, see `esper.tamiyo.networks.action_tree.correlate`."""
    paired: bool = False
    """The rows of a vector environment share their luck (the same episode in each): an advantage is taken over the mean
    of the other rows' at the same step, `esper.simic.advantages.mean_of_others`."""
    overlap: bool = False
    """Collect the next rollout while learning from the last one. It is acted by a copy of the policy as it was before
    that update, so that its data are one update old."""
    checkpoint_every: int = 10
    """Updates between two checkpoints; there is always one of the last update."""
    eval_every: int | None = None
    """Updates between two evaluations on environments of their own; there is one of the last update, too. The best
    policy is kept in `best/` of the run directory. `None`: none."""
    eval_episodes: int = 20
    """Whole episodes of an evaluation, the same in each; choices are the most probable ones."""
    stop_at_return: float | None = None
    """End the run when the mean return of an evaluation is at least this."""
    track: tuple[str, ...] = ()
    """Trackers that metrics go to, beside TensorBoard: `wandb`, `mlflow`, `trackio`."""
    device: str = "cpu"
    """Where the policy lives and learns: `cpu`, `cuda`, `cuda:1`, …; `auto` is a GPU where there is one."""

    def __post_init__(self) -> None:
        for name in (
            "total_steps",
            "updates",
            "num_envs",
            "num_steps",
            "checkpoint_every",
            "eval_every",
            "eval_episodes",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 <= self.noise_correlation < 1:
            raise ValueError(f"noise_correlation: expected a number from 0 to below 1, got {self.noise_correlation}")
        if self.stop_at_return is not None and self.eval_every is None:
            raise ValueError("stop_at_return: the return is that of an evaluation; say how often, with eval_every")

    def find_device(self) -> torch.device:
        """The device called ``device``.

        Raises:
            ValueError: When there is none.
        """
        gpus = torch.cuda.device_count()
        if self.device == "auto":
            return torch.device("cuda" if gpus else "cpu")
        try:
            found = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:0', got '{self.device}'") from error
        if found.type == "cuda" and (found.index or 0) >= gpus:
            raise ValueError(f"device: '{self.device}' is not here, PyTorch sees {gpus} GPUs; use 'auto' or 'cpu'")
        return found

    def planned_updates(self, num_envs: int, done: int = 0, rows: int = 0) -> int:
        """Updates in all, with ``num_envs`` environments from now on, after ``done`` updates of ``rows`` steps."""
        if self.updates is not None:
            return self.updates
        return done + max(0, math.ceil((self.total_steps - rows) / (num_envs * self.num_steps)))
