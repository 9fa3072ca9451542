"""``esper train``: what it writes, that it repeats itself bit for bit, and that an interrupted run goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from episodes import quick_task
from esper import simic, training
from esper.cli import main
from esper.commands.train import TamiyoProgress
from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation.episodes import evaluation_seeds, run_episodes, validation_objectives
from esper.simic import NetworkOptions, PPOConfig, TrainConfig, rollout_buffer
from esper.simic import advantages as advantages_module
from esper.tamiyo.networks.factored_lstm import FactoredRecurrentActorCritic
from esper.tamiyo.policy.learned import LearnedPolicy
from esper.tamiyo.policy.lstm_bundle import LSTMPolicyBundle
from esper.tamiyo.policy.registry import make_policy
from esper.tamiyo.policy.rules import RandomPolicy
from esper.tasks import TASKS, Digits

FILES = ("command.json", "config.json", "metrics.jsonl", "checkpoint", "comparison.json", "growth-quick_digits.png")


class QuickDigits(Digits):
    """Digits with four decisions of two batches: whole runs of the command in seconds."""

    name = "quick_digits"
    horizon, steps_per_decision, batch_size = 4, 2, 32


@pytest.fixture(autouse=True)
def _quick_task(monkeypatch):
    monkeypatch.setitem(TASKS, "quick_digits", QuickDigits)


def run(*arguments):
    quick = ["--task", "quick_digits", "--num-envs", "2", "--eval-episodes", "2", "--num-workers", "1"]
    return main(["train", *(quick if "--resume" not in arguments else []), *map(str, arguments)])


def rows(run_dir):
    """The metrics of a run without what a clock says."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k and "time" not in k} for line in lines]


def test_a_run_leaves_everything_and_says_where(tmp_path, capsys):
    assert run("--updates", 2, "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    for name in FILES:
        assert (tmp_path / "run" / name).exists()
        assert name == "command.json" or name in printed.replace("\n", "")
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))
    assert (tmp_path / "run" / FILES[-1]).read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "run" / "comparison.json").read_text())
    arms = {"host alone", "random legal", "fixed schedule", "heuristic", "audition", "Tamiyo"}
    assert {row["arm"] for row in written["rows"]} == arms
    assert len(written["episodes"]) == 2 * len(arms)
    assert len(rows(tmp_path / "run")) == 2
    assert isinstance(make_policy(tmp_path / "run" / "policy"), LearnedPolicy)


@pytest.mark.parametrize("paired", [False, True])
def test_paired_networks_learn_from_one_another(tmp_path, monkeypatch, paired):
    seen = []

    def mean_of_others(advantages, valid):
        seen.append(advantages)
        return advantages_module.mean_of_others(advantages, valid)

    monkeypatch.setattr(rollout_buffer, "mean_of_others", mean_of_others)
    options = ["--paired"] if paired else []
    assert run("--updates", 1, *options, "--variants.rent", 0.01, 0.05, "--out", tmp_path / "run") == 0
    rollouts = 2  # one fills the statistics, one is learned from
    assert len(seen) == (2 * rollouts if paired else 0)  # each once more in hindsight


def test_runs_of_several_lengths_are_trained_on_and_runs_of_the_tasks_length_compared(tmp_path):
    out = tmp_path / "run"
    assert run("--updates", 2, "--variants.horizon", 3, 6, "--variants.rent", 0.01, 0.05, "--out", out) == 0
    lengths = [row["length"] for row in rows(out) if row["episodes"]]
    assert any(length != 4 for length in lengths)
    written = json.loads((out / "comparison.json").read_text())
    assert {len(episode["ops"]) for episode in written["episodes"]} == {4}


@pytest.mark.parametrize("best", [1.0, 0.3, 0.1])
def test_how_she_decides_is_chosen_on_validation_episodes_and_kept(tmp_path, monkeypatch, capsys, best):
    """The comparison is played with the best, on other episodes; those are of validation data."""
    played, really_compare = [], training.compare

    def validation_objectives(env, policy, seeds, **_):
        played.append((policy.bundle.op_share, list(seeds), env.reward_config.waste))
        return np.full(env.num_envs, 0.5 + (policy.bundle.op_share == best))

    def compare(envs, arms, seeds, on_decision):
        played.append((arms["Tamiyo"].bundle.op_share, list(seeds), envs[0].reward_config.waste))
        return really_compare(envs, arms, seeds, on_decision)

    monkeypatch.setattr(training, "validation_objectives", validation_objectives)
    monkeypatch.setattr(training, "compare", compare)
    assert run("--updates", 1, "--waste", 0.02, "--out", tmp_path / "run") == 0
    assert [share for share, _, _ in played] == [1.0, 0.3, 0.1, best]
    assert played[0][1] == played[2][1] == evaluation_seeds(1, seed=0, purpose="validation")
    assert not set(played[0][1]) & set(played[3][1])
    assert {waste for _, _, waste in played} == {0.0}
    assert LSTMPolicyBundle.load(tmp_path / "run" / "policy").op_share == best
    assert f"from {best:g} of the likeliest" in capsys.readouterr().out.replace("\n", " ")


def test_validation_episodes_are_those_of_an_evaluation_without_its_test_data(monkeypatch):
    env = GrowthVectorEnv(3, QuickDigits(), autoreset_mode=AutoresetMode.NEXT_STEP)
    policy = RandomPolicy()
    expected = [result.J for result in run_episodes(env, policy, [4, 5, 6], arm="any")]
    monkeypatch.delattr(GrowthVectorEnv, "test_scores")
    assert validation_objectives(env, policy, [4, 5, 6]).tolist() == expected
    assert len(set(expected)) == 3


def test_the_same_seed_gives_the_same_metrics_bit_for_bit(tmp_path):
    assert run("--updates", 2, "--out", tmp_path / "a") == 0
    assert run("--updates", 2, "--out", tmp_path / "b") == 0
    assert run("--updates", 2, "--seed", 1, "--out", tmp_path / "c") == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a") != rows(tmp_path / "c")
    comparisons = [(tmp_path / name / "comparison.json").read_text() for name in "ab"]
    assert comparisons[0] == comparisons[1]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path):
    """Stopped in the middle of the second rollout, resumed, and the metrics are those of a run that never stopped."""

    class StopsOnce(simic.Callback):
        steps = 0

        def on_step(self):
            self.steps += 1
            if self.steps == 6:
                os.kill(os.getpid(), signal.SIGINT)

    def train(run_dir, callback=None, resume=False):
        env = GrowthVectorEnv(2, quick_task("digits", horizon=4), autoreset_mode=AutoresetMode.SAME_STEP)
        config = TrainConfig(
            updates=3,
            num_steps=4,
            ppo=PPOConfig(gamma=1.0),
            network=NetworkOptions(),
            normalize_observations=False,
            normalize_rewards=False,
        )
        simic.train([env], config=config, run_dir=run_dir, callback=callback, resume=resume)

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", callback=StopsOnce())
    assert len(rows(tmp_path / "stopped")) == 1
    train(tmp_path / "stopped", resume=True)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


@pytest.fixture
def trained(tmp_path):
    """The directory of a small policy with weights of its own."""
    torch.manual_seed(5)
    network = FactoredRecurrentActorCritic(hidden_dim=16, head_dim=8, slot_dim=8)
    LSTMPolicyBundle(network).save(tmp_path / "trained")
    return tmp_path / "trained"


def weights(directory):
    return LSTMPolicyBundle.load(directory).network.state_dict()


def test_a_trained_policy_goes_on_learning_from_where_it_is(tmp_path, trained):
    before = weights(trained)
    assert run("--policy", trained, "--updates", 1, "--ppo.learning-rate", 1e-4, "--out", tmp_path / "run") == 0
    after = weights(tmp_path / "run" / "policy")
    assert all(torch.equal(weights(trained)[name], value) for name, value in before.items())
    changes = [float((after[name] - value).abs().max()) for name, value in before.items()]
    assert 0 < max(changes) < 1e-2  # at most the learning rate for each of the 32 steps of the optimiser


@pytest.mark.slow
def test_a_run_from_a_trained_policy_goes_on_without_it(tmp_path, trained, monkeypatch):
    """Stopped in the second rollout and resumed when the policy that it began with is gone: bit for bit the same."""

    class StopsOnce(TamiyoProgress):
        steps = 0

        def on_step(self):
            super().on_step()
            StopsOnce.steps += 1
            if StopsOnce.steps == 6:
                os.kill(os.getpid(), signal.SIGINT)

    assert run("--policy", trained, "--updates", 2, "--out", tmp_path / "whole") == 0
    monkeypatch.setattr("esper.commands.train.TamiyoProgress", StopsOnce)
    assert run("--policy", trained, "--updates", 2, "--out", tmp_path / "stopped") == 130
    assert len(rows(tmp_path / "stopped")) == 1
    shutil.rmtree(trained)
    shutil.rmtree(tmp_path / "stopped" / "checkpoint.previous")
    os.replace(tmp_path / "stopped" / "checkpoint", tmp_path / "stopped" / "checkpoint.previous")  # killed in a move
    assert run("--resume", tmp_path / "stopped") == 0
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    for name in ("comparison.json", "policy/policy.safetensors"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    """The real command in a real process, killed with SIGKILL while it trains."""
    command = [sys.executable, "-m", "esper", "train", "--task", "digits", "--num-envs", "2", "--updates", "3"]
    command += ["--eval-episodes", "2", "--quiet", "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") >= 1) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "comparison.json").exists()
    resume = [sys.executable, "-m", "esper", "train", "--resume", str(tmp_path / "killed"), "--quiet"]
    subprocess.run(resume, check=True, capture_output=True)
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    files = [(tmp_path / name / "comparison.json").read_text() for name in ("whole", "killed")]
    assert files[0] == files[1]


def test_a_finished_run_can_be_compared_again(tmp_path):
    assert run("--updates", 1, "--out", tmp_path / "run") == 0
    before = (tmp_path / "run" / "comparison.json").read_text()
    (tmp_path / "run" / "comparison.json").unlink()
    assert run("--resume", tmp_path / "run") == 0
    assert (tmp_path / "run" / "comparison.json").read_text() == before
    assert len(rows(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "digit", "--out", "new"], "unknown task 'digit'; did you mean 'digits'"),
        (["--updates", "0"], "updates must be 1 or more, got 0"),
        (["--rent", "-1", "--out", "new"], "rent"),
        (["--resume", "nowhere"], "expected the directory of an `esper train` run"),
        (["--out", "full"], "exists and is not empty"),
        (["--policy", "nowhere", "--out", "new"], "nowhere"),
        (["--task", "quick_digits", "digits", "--out", "new"], "must have the same horizon"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full", "thesis.tex").write_text("mine")
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error
    assert not Path("new").exists()
