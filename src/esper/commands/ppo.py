"""``esper ppo``: train a policy on any registered environment, from the command line."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import gymnasium.error
import tyro
from gymnasium.vector import VectorEnv
from rich.console import Console

from esper.commands.resuming import resumable
from esper.extensions import look_up
from esper.simic.evaluation import evaluate, load_bundle, record
from esper.simic.locksmith import register_environments
from esper.simic.ray_envs import RayVectorEnv
from esper.simic.spaces import imported, make_envs
from esper.simic.training.config import TrainConfig
from esper.simic.training.progress import Progress
from esper.simic.training.vectorized import train
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle


@dataclass(frozen=True)
class PPOCommand:
    """Train a recurrent policy with PPO on any Gymnasium environment."""

    env: str
    """Id of the environment; `module:Id-v0` imports a module first, also one in the working directory."""
    env_arg: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Argument of the environment: `key=value`, the value a Python literal or else a string. Once for each."""
    wrapper: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Wrapper around each copy, `module:Class` (`gymnasium.wrappers:FlattenObservation`). Once for each, the
    innermost first."""
    vectorization: Literal["auto", "sync", "async"] = "auto"
    """Copies in this process (`sync`), in a process each (`async`), or the environment's own vectorised form where
    there is one (`auto`)."""
    ray_workers: int = 0
    """Ray actors that step the copies, on one machine or many; results are those of `sync`. 0 for none."""
    address: str | None = None
    """Of a running Ray cluster, `auto` or HOST:PORT; by default one is started on this machine."""
    run_dir: Path | None = None
    """Where to write config, metrics, TensorBoard events and checkpoints."""
    resume: bool = False
    """Go on with the run in `run_dir`."""
    evaluate_only: bool = False
    """Do not train; play with the policy in `run_dir`."""
    best: bool = False
    """Play with the policy of the best evaluation, instead of the last one; see `eval_every`."""
    episodes: int = 100
    """Episodes to play afterwards; 0 for none."""
    sample: bool = False
    """Draw actions in those episodes, instead of taking the most probable ones."""
    video: Path | None = None
    """Directory for a video of one more such episode; needs MoviePy."""
    quiet: bool = False
    """One line per update instead of a live table."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    """The training run."""

    def run(self, console: Console) -> None:
        """Train, then play; progress and result go to ``console``.

        Raises:
            ValueError: For an environment or options that are not supported.
            KeyboardInterrupt: After Ctrl-C; how to go on has been said.
        """
        register_environments()
        self._check_workers()
        if (self.evaluate_only or self.best) and self.run_dir is None:
            raise ValueError("--evaluate-only and --best need the --run-dir of a trained policy")
        try:
            policy = None if self.evaluate_only else self._train(console)
            if policy is None or self.best:
                assert self.run_dir is not None
                policy = load_bundle(self.run_dir, best=self.best)
            if self.episodes:
                self._play(policy, console)
            if self.video is not None:
                self._record(policy, self.video, console)
        except gymnasium.error.Error as error:
            raise ValueError(f"environment '{self.env}': {error}") from error

    def _check_workers(self) -> None:
        if self.ray_workers < 0:
            raise ValueError(f"--ray-workers: expected 0 or more, got {self.ray_workers}")
        if self.address is not None and not self.ray_workers:
            raise ValueError(f"--address: '{self.address}' is of use to Ray workers only; say how many")
        if self.ray_workers and self.vectorization == "async":
            raise ValueError(
                "--ray-workers: copies are in Ray actors or in processes of this machine (async), not both"
            )

    def _train(self, console: Console) -> LSTMPolicyBundle:
        progress = Progress(quiet=self.quiet, console=console)
        go_on = f"the same options, --run-dir {self.run_dir} --resume"
        with ExitStack() as stack:
            envs, eval_envs = stack.enter_context(closing(self._make(self.train.num_envs))), None
            if self.train.eval_every is not None:
                eval_envs = stack.enter_context(closing(self._make(min(self.train.num_envs, self.train.eval_episodes))))
            if self.run_dir is not None:
                stack.enter_context(resumable(console, go_on))
            return train(
                envs,
                config=self.train,
                run_dir=self.run_dir,
                callback=progress,
                eval_envs=eval_envs,
                resume=self.resume,
            ).policy

    def _play(self, policy: LSTMPolicyBundle, console: Console) -> None:
        with closing(self._make(min(self.train.num_envs, self.episodes))) as envs:
            result = evaluate(
                policy, envs, episodes=self.episodes, seed=self.train.seed + 1, deterministic=not self.sample
            )
        played = "1 episode" if self.episodes == 1 else f"{self.episodes} episodes"
        error = "" if self.episodes == 1 else f" ± {result.standard_error:.2g}"  # nothing is known of it
        console.print(f"return {result.mean_return:.4g}{error} over {played}")

    def _record(self, policy: LSTMPolicyBundle, directory: Path, console: Console) -> None:
        modes = self._called(lambda **arguments: gym.make(imported(self.env), **arguments)).metadata["render_modes"]
        if "rgb_array" not in modes:
            raise ValueError(f"--video: environment '{self.env}' does not draw (rgb_array), it can do {modes}")
        env = self._called(lambda **arguments: gym.make(imported(self.env), render_mode="rgb_array", **arguments))
        for wrap in self._wrappers():
            env = wrap(env)
        result = record(policy, env, directory, seed=self.train.seed + 1, deterministic=not self.sample)
        console.print(f"video of a return of {result.mean_return:.4g} in {directory}", soft_wrap=True)

    # ------------------------------------------------------------------ the environment

    def _make(self, num_envs: int) -> VectorEnv:
        options: dict[str, Any] = {"wrappers": self._wrappers()}
        if self.ray_workers:
            make: Callable[..., VectorEnv] = RayVectorEnv
            options |= {"workers": self.ray_workers, "address": self.address}
        else:
            make = make_envs
            options["vectorization"] = self.vectorization
        return self._called(lambda **arguments: make(self.env, num_envs, **options, **arguments))

    def _called(self, make: Callable[..., Any]) -> Any:
        """What ``make`` makes of the environment's arguments."""
        try:
            return make(**self._arguments())
        except TypeError as error:
            raise ValueError(f"environment '{self.env}' with {self._arguments()}: {error}") from error

    def _arguments(self) -> dict[str, Any]:
        arguments = {}
        for word in self.env_arg:
            key, equals, value = word.partition("=")
            if not (equals and key.isidentifier()):
                raise ValueError(f"--env-arg: expected key=value, got '{word}'")
            try:
                arguments[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                arguments[key] = value
        return arguments

    def _wrappers(self) -> list[Callable[[gym.Env], gym.Wrapper]]:
        found = []
        for path in self.wrapper:
            try:
                found.append(look_up(path))
            except ValueError as error:
                raise ValueError(f"--wrapper: expected module:Class, got '{path}': {error}") from error
        return found
