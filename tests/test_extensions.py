"""What a user has registered in a module is known to every command, and to every process of it."""

from __future__ import annotations

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from sklearn.datasets import load_digits

from esper.cli import main
from esper.env.reward import OBJECTIVES
from esper.extensions import look_up
from esper.network.blueprints import unregister_blueprint
from esper.tamiyo.policy.registry import make_policy
from esper.tasks import TASKS

TASK = """
from esper.tasks import get_task, register_task

@register_task
class Mine(type(get_task("wine"))):
    name, description, horizon = "mine", "wine of my own", 3
"""

PARENT = """
import multiprocessing
from esper.extensions import import_modules
from esper.workers import begin_worker

def work(connection):
    begin_worker()
    from esper.tasks import TASKS
    connection.send("mine" in TASKS)

if __name__ == "__main__":
    import_modules(["my_tasks"])
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    context.Process(target=work, args=(other,)).start()
    print(connection.recv())
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The directory in which the command is called; it holds a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_IMPORTED", "")  # what a test imports is taken back with it
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "my_tasks.py").write_text(TASK)
    yield tmp_path
    sys.modules.pop("my_tasks", None)
    TASKS.pop("mine", None)


@pytest.mark.parametrize("arguments", [["--import", "my_tasks", "tasks"], ["tasks", "--import=my_tasks"]])
def test_a_module_is_imported_before_any_command(directory, arguments, capsys):
    assert main(arguments) == 0
    assert "wine of my own" in capsys.readouterr().out


def test_workers_import_it_too(directory):
    (directory / "parent.py").write_text(PARENT)
    result = subprocess.run([sys.executable, "parent.py"], capture_output=True, text=True, check=True, cwd=directory)
    assert result.stdout == "True\n"


def test_a_module_that_cannot_be_imported_is_one_line(directory, capsys):
    (directory / "broken.py").write_text("x = 1\nundefined\n")
    for module, said in (
        ("nowhere", "importing 'nowhere' failed: ModuleNotFoundError: No module named 'nowhere'"),
        ("broken", f"importing 'broken' failed ({directory / 'broken.py'}, line 2): NameError"),
        ("my_tasks.py", "got the file 'my_tasks.py'; say 'my_tasks'"),
    ):
        assert main(["--import", module, "tasks"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert main(["tasks", "--import"]) == 2
    assert "--import takes the name of a module" in capsys.readouterr().err


def test_a_policy_is_found_by_module_and_name(directory):
    (directory / "mine.py").write_text(
        "from esper import Decision\n"
        "from esper.tamiyo.policy.rules import WaitPolicy\n"
        "def rule(run):\n    return Decision()\n"
        "class Patient(WaitPolicy):\n    pass\n"
    )
    assert make_policy("mine:rule").rule is look_up("mine:rule")
    assert isinstance(make_policy("mine:Patient"), look_up("mine:Patient"))
    with pytest.raises(ValueError, match=r"the module mine .* has no 'other'"):
        make_policy("mine:other")


def test_what_stands_inside_a_class_is_found_by_its_dotted_name(directory):
    (directory / "inner.py").write_text("class Outer:\n    class Inner:\n        number = 3\n")
    assert look_up("inner:Outer.Inner.number") == 3
    with pytest.raises(ValueError, match=r"'inner:Outer.other': the module inner .* has no 'Outer.other'"):
        look_up("inner:Outer.other")


BLOCKS = """
import torch
from torch import nn
from esper import Blueprint, Decision, Op, register_blueprint

@register_blueprint
class Sine(Blueprint):
    "A sine of a linear map."
    name, kinds = "sine", frozenset({"vector"})

    def __init__(self, spec):
        super().__init__(spec)
        self.inside = nn.Linear(spec.channels, spec.channels)
        self.weight = nn.Parameter(torch.zeros(spec.channels))

    def forward(self, h):
        return self.weight * torch.sin(self.inside(h))

def rule(run):
    "A sine into the first slot."
    if run.decision == 0:
        return Decision(Op.GERMINATE, 0, "sine")
    return run.first_allowed(Op.ADVANCE) or run.first_allowed(Op.FOSSILIZE) or Decision()
"""

SERVE = """
import sys, torch
sys.modules["esper"] = None  # it is not there
program = torch.export.load(sys.argv[1]).module()
print(tuple(program(torch.randn(5, 13)).shape), any("sin" in str(node.target) for node in program.graph.nodes))
"""


def test_a_blueprint_of_ones_own_is_listed_grown_exported_and_served_without_esper(directory, capsys):
    (directory / "my_blocks.py").write_text(BLOCKS)
    (directory / "serve.py").write_text(SERVE)
    try:
        assert main(["--import", "my_blocks", "blueprints"]) == 0
        assert "A sine of a linear map." in capsys.readouterr().out
        grow = ["grow", "--task", "wine", "--policy", "my_blocks:rule", "--epochs", "4", "--rent", "0", "--out", "run"]
        assert main(grow) == 0
        growth = json.loads((directory / "run" / "growth.json").read_text())["growth"]
        assert [seed["blueprint"] for seed in growth["seeds"] if seed["params"]] == ["sine"]
    finally:
        sys.modules.pop("my_blocks", None)
        unregister_blueprint("sine")
    serving = [sys.executable, "serve.py", str(next((directory / "run").glob("*.pt2")))]
    served = subprocess.run(serving, capture_output=True, text=True, check=True, cwd=directory)
    assert served.stdout == "(5, 3) True\n"


def test_every_command_finds_modules_where_it_is_called(directory, capsys):
    (directory / "my_envs.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Mine-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=5)\n"
    )
    try:
        arguments = ["--updates", "1", "--num-envs", "2", "--num-steps", "4", "--quiet"]
        assert main(["ppo", "--env", "my_envs:Mine-v0", "--episodes", "2", *arguments]) == 0
        assert "return 5 ±" in capsys.readouterr().out
    finally:
        sys.modules.pop("my_envs", None)
        gym.registry.pop("Mine-v0", None)


AIMS = """
import random
from esper import register_objective
from esper.tasks import get_task, register_task

@register_objective
def small(outcome):
    return -outcome.params / outcome.host_params

def noise(outcome):
    return random.random()

@register_task
class Mine(type(get_task("wine"))):
    name, description, horizon, steps_per_decision = "mine", "a short wine of my own", 3, 2
"""


def test_an_objective_of_ones_own_trains_a_controller(directory, capsys):
    (directory / "my_aims.py").write_text(AIMS)
    train = ["train", "--import", "my_aims", "--task", "mine", "--num-envs", "2", "--updates", "1", "--quiet"]
    train += ["--eval-episodes", "2", "--num-workers", "1", "--ppo.epochs", "1", "--out"]
    try:
        assert main([*train, "run", "--objective", "small"]) == 0
        rows = json.loads((directory / "run" / "comparison.json").read_text())["rows"]
        host = next(row["total_params"]["estimate"] for row in rows if row["arm"] == "host alone")
        for row in rows:
            assert row["J"]["estimate"] == pytest.approx(-row["total_params"]["estimate"] / host), row["arm"]
        assert main([*train, "other", "--objective", "my_aims:noise"]) == 2
        assert "rewards telescope only if it depends on the outcome alone" in capsys.readouterr().err
        assert not (directory / "other").exists()
    finally:
        sys.modules.pop("my_aims", None)
        OBJECTIVES.pop("small", None)


HOST = """
import torch
from torch import nn

def residual(x, outputs):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
        def forward(self, h):
            return torch.relu(h + self.norm(self.conv(h)))
    return nn.Sequential(nn.Conv2d(x.shape[1], 8, 3), Block(), Block(), nn.Flatten(1), nn.LazyLinear(outputs))
"""


@pytest.mark.parametrize("slots", [(), ("--slot", "2")])
def test_a_host_of_ones_own_grows_on_data_of_ones_own_and_is_served_without_esper(directory, capsys, slots):
    digits = load_digits()
    np.savez("digits.npz", x=digits.images[:400].astype("float32"), y=digits.target[:400])
    (directory / "my_nets.py").write_text(HOST)
    arguments = ["grow", "--data", "digits.npz", "--host", "my_nets:residual", *slots, "--policy", "fixed"]
    assert main([*arguments, "--epochs", "6", "--quiet", "--out", "run"]) == 0
    told = json.loads((directory / "run/growth.json").read_text())
    assert told["growth"]["slots"].keys() == ({"2"} if slots else {"1", "2"})
    assert told["growth"]["added_params"] > 0
    served = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, cwd=directory, check=True)
    assert float(served.stdout) > 0.5
    capsys.readouterr()
    assert main(["grow", "--data", "digits.npz", "--slot", "2", "--out", "other"]) == 2
    assert "--slot names slots of a host of your own, and needs --host" in capsys.readouterr().err
    assert not (directory / "other").exists()


SERVED = """
import sys, numpy, torch
rows = numpy.load("digits.npz")
answers = torch.export.load("run/grown.pt2").module()(torch.from_numpy(rows["x"]))
assert not any(name.startswith("esper") for name in sys.modules)
print((answers.argmax(-1).numpy() == rows["y"]).mean())
"""
