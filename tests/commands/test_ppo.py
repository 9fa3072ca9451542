"""``esper ppo``, as it is called from the command line."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import tyro
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from rich.console import Console

from esper.commands.ppo import PPOCommand
from esper.simic import TrainConfig
from esper.simic.training.run_directory import read_config

SMALL = ["--updates", "2", "--num-envs", "2", "--num-steps", "16", "--network.hidden-dim", "8", "--episodes", "3"]


def call(*arguments: str) -> str:
    """What the command prints."""
    output = io.StringIO()
    tyro.cli(PPOCommand, args=list(arguments)).run(Console(file=output, width=200))
    return output.getvalue()


def test_trains_evaluates_and_resumes(tmp_path: Path) -> None:
    run = ["--env", "esper/Locksmith-v0", "--run-dir", str(tmp_path / "run")]
    trained = call(*run, *SMALL)
    assert "update 2/2" in trained
    assert "over 3 episodes" in trained
    played = call(*run, "--evaluate-only", *SMALL)
    assert played == trained.splitlines()[-1] + "\n"
    assert "update 3/3" in call(*run, "--resume", *SMALL, "--updates", "3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "NoSuchThing-v0"], "environment 'NoSuchThing-v0'"),
        (["--env", "no_such_module:Thing-v0"], "No module named 'no_such_module'; expected module:Id-v0"),
        (["--env", "CartPole-v1", "--evaluate-only"], "--evaluate-only and --best need the --run-dir"),
        (["--env", "CartPole-v1", "--best"], "--evaluate-only and --best need the --run-dir"),
        (["--env", "CartPole-v1", "--env-arg", "heavy"], "--env-arg: expected key=value, got 'heavy'"),
        (["--env", "CartPole-v1", "--env-arg", "heavy=1"], "'CartPole-v1' with {'heavy': 1}: .*argument 'heavy'"),
        (
            ["--env", "CartPole-v1", "--wrapper", "gymnasium.wrappers:Nope"],
            "--wrapper: expected module:Class, got 'gym",
        ),
        (["--env", "CartPole-v1", "--wrapper", "nope:Nope"], "got 'nope:Nope': importing 'nope' failed"),
        (["--env", "CartPole-v1", "--resume"], "needs the run_dir"),
    ],
)
def test_bad_input_is_a_value_error(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*arguments)


def cells(size: int = 2, name: str = "plain", *, render_mode: str | None = None) -> gym.Env:
    """Shows zeros; an episode has three steps, and each is drawn in another grey."""
    return _Cells(size, name, render_mode)


class _Cells(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012
    action_space = gym.spaces.Discrete(2)

    def __init__(self, size: int, name: str, render_mode: str | None) -> None:
        assert name in ("plain", "fancy")
        self.observation_space = gym.spaces.Box(0, 1, (size, 3))
        self.render_mode, self.time = render_mode, 0

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.observation_space.low.copy(), {}

    def step(self, action):
        self.time += 1
        return self.observation_space.low.copy(), 1.0, self.time == 3, False, {}

    def render(self):
        return np.full((16, 16, 3), 60 * self.time, np.uint8)


class Silent(gym.Env):
    """Cannot be drawn."""

    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    reset, step = _Cells.reset, _Cells.step


@pytest.fixture
def registered() -> Iterator[None]:
    gym.register("Cells-v0", cells, max_episode_steps=10)
    gym.register("Silent-v0", Silent)
    yield
    del gym.registry["Cells-v0"], gym.registry["Silent-v0"]


CELLS = ["--env", "Cells-v0", "--env-arg", "size=4", "--env-arg", "name=fancy"]


def test_arguments_and_wrappers_reach_every_copy_and_are_the_runs_for_life(registered, tmp_path: Path) -> None:
    """Flattened, then with the time: 4 × 3 + 1 numbers."""
    flat, timed = (f"gymnasium.wrappers:{name}" for name in ("FlattenObservation", "TimeAwareObservation"))
    run = [*CELLS, "--wrapper", flat, "--wrapper", timed, "--run-dir", str(tmp_path / "run"), *SMALL]
    call(*run, "--eval-every", "1", "--eval-episodes", "2")
    described = read_config(tmp_path / "run")
    assert described.environment == ("Cells-v0(name='fancy', size=4) in FlattenObservation, TimeAwareObservation")
    assert described.network.state_dim == 13
    assert call(*run, "--evaluate-only", "--best") == "return 3 ± 0 over 3 episodes\n"
    assert call(*run, "--evaluate-only", "--best", "--episodes", "1") == "return 3 over 1 episode\n"
    for other in (["--env-arg", "size=5"], ["--wrapper", flat]):
        with pytest.raises(ValueError, match="is to be resumed on Cells-v0"):
            call(*run, *other, "--resume")


def test_copies_may_run_in_processes_of_their_own(registered) -> None:
    command = tyro.cli(PPOCommand, args=["--env", "CartPole-v1", "--vectorization", "async"])
    envs = command._make(2)
    try:
        assert isinstance(envs, AsyncVectorEnv)
        assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    finally:
        envs.close()


@pytest.fixture
def videos(monkeypatch) -> dict[str, list[np.ndarray]]:
    """What MoviePy would have written, by file."""
    written: dict[str, list[np.ndarray]] = {}

    class ImageSequenceClip:
        def __init__(self, frames, fps):
            self.frames = frames

        def write_videofile(self, path, logger):
            written[Path(path).name] = self.frames

    moviepy = types.ModuleType("moviepy")
    sequence = types.ModuleType("moviepy.video.io.ImageSequenceClip")
    sequence.ImageSequenceClip = moviepy.ImageSequenceClip = ImageSequenceClip
    for name in ("moviepy", "moviepy.video", "moviepy.video.io"):
        monkeypatch.setitem(sys.modules, name, moviepy)
    monkeypatch.setitem(sys.modules, sequence.__name__, sequence)
    return written


def test_a_video_shows_one_whole_episode(registered, videos, tmp_path: Path) -> None:
    said = call(*CELLS, *SMALL, "--updates", "1", "--video", str(tmp_path / "videos"))
    assert said.splitlines()[-1] == f"video of a return of 3 in {tmp_path / 'videos'}"
    ((name, frames),) = videos.items()
    assert name == "rl-video-episode-0.mp4"
    assert [frame[0, 0, 0] for frame in frames] == [0, 60, 120, 180]


def test_a_video_that_cannot_be_made_is_one_plain_sentence(registered, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "moviepy", None)  # as if it were not installed
    with pytest.raises(ValueError, match="environment 'Cells-v0': MoviePy is not installed"):
        call(*CELLS, *SMALL, "--updates", "1", "--episodes", "0", "--video", str(tmp_path / "videos"))
    with pytest.raises(ValueError, match=r"--video: environment 'Silent-v0' does not draw \(rgb_array\)"):
        call("--env", "Silent-v0", *SMALL, "--updates", "1", "--episodes", "0", "--video", str(tmp_path / "videos"))


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path: Path) -> None:
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("esper.commands.ppo.train", interrupted)
    output = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        PPOCommand("CartPole-v1", run_dir=tmp_path).run(Console(file=output, width=200))
    assert f"--run-dir {tmp_path} --resume" in output.getvalue()


def test_every_option_of_a_run_has_a_flag() -> None:
    command = tyro.cli(
        PPOCommand,
        args=[
            "--env",
            "X",
            "--ppo.gamma",
            "0.5",
            "--network.memory",
            "gru",
            "--network.policy-layers",
            "32",
            "16",
            "--seed",
            "3",
        ],
    )
    assert command.train == TrainConfig(seed=3, ppo=command.train.ppo, network=command.train.network)
    assert command.train.ppo.gamma == 0.5
    assert (command.train.network.memory, command.train.network.policy_layers) == ("gru", (32, 16))
