"""On Ray actors, every bit is that of one process, also when actors die in the middle of an episode."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

import mortal
from episodes import bits, play, quick_task
from esper import cluster
from esper.cli import main
from esper.cluster import answered, connect
from esper.env.engine import ray_workers
from esper.env.engine.parallel import ParallelEngine, Share
from esper.env.engine.ray_workers import RayWorkers
from esper.env.growth_env import GrowthVectorEnv
from esper.evaluation.study.pools import ray_pool
from esper.tamiyo.policy.rules import RandomPolicy
from esper.training import TamiyoConfig, train_tamiyo

ray = pytest.importorskip("ray")

HORIZON = 5


def envs(num_workers=1, **options):
    return GrowthVectorEnv(3, quick_task("wine", horizon=HORIZON), num_workers=num_workers, **options)


@pytest.fixture(scope="module")
def actors():
    """Two Ray actors, in a cluster of this machine that knows the modules of these tests."""
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(mortal.__file__).parent), before])
    try:
        yield RayWorkers(2)
    finally:
        os.environ["PYTHONPATH"] = before
        ray.shutdown()


@pytest.fixture(scope="module")
def alone():
    """An undisturbed run, two episodes long, in this process."""
    return play(envs(), steps=2 * HORIZON)


def test_a_share_is_made_again_from_its_episodes_and_decisions():
    env = envs()
    env.reset(seed=1)
    policy, episodes = RandomPolicy(), dict(enumerate(env.episodes))
    policy.reset(3, 0)
    share = Share(partial(type(env.engine), env.task), 3)
    engine = share.engine()

    def ask(method, argument):
        for i, report in getattr(engine, method)(argument).items():
            env._rows[i].report = report
        share.record(method, argument)

    def decide(rows):
        decisions, _ = env._decisions(policy.act(env._observe()))
        return {i: decisions[i] for i in rows}

    ask("reset", episodes)
    for rows in ([0, 1, 2], [1, 2], [0, 1]):  # some begin anew, some are ahead of others
        ask("step", decide(rows))
    ask("reset", {1: episodes[1]})
    ask("step", decide([0, 1]))
    assert [len(share.decisions[i]) for i in range(3)] == [3, 1, 2]
    again, decisions = share.engine(), decide([0, 1, 2])
    reports, others = engine.step(decisions), again.step(decisions)
    for i in range(3):
        assert reports[i].reading == others[i].reading
    assert again.test_scores([0, 1, 2]) == engine.test_scores([0, 1, 2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--address", "auto"], "is of use to Ray workers only"),
        (["--ray-workers", "-1"], "must be 0 or more, got -1"),
        (["--ray-workers", "2", "--address", "somewhere"], "expected the address of a Ray cluster, got 'somewhere'"),
    ],
)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_options_that_make_no_sense_are_one_line(command, options, said, tmp_path, capsys):
    assert main([command, *options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_address_where_nothing_listens_is_one_line(tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    assert main(["train", "--ray-workers", "2", "--address", address, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"no Ray cluster answers at '{address}'" in error
    assert error.count("\n") == 1


def test_a_cluster_that_asks_for_a_token_is_one_line(tmp_path, capsys, monkeypatch):
    def refuses(*_, **__):
        raise ConnectionError("Failed to connect") from RuntimeError("RPC error: InvalidAuthToken: it is missing")

    monkeypatch.setattr(ray, "init", refuses)
    assert main(["train", "--ray-workers", "2", "--address", "auto", "--out", str(tmp_path / "out")]) == 2
    said = "the Ray cluster at 'auto' asks for a token, and this machine has another or none: copy ~/.ray/auth_token"
    assert capsys.readouterr().err.startswith(f"esper: {said}")


def test_without_ray_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'esper-lite\[ray\]'"):
        RayWorkers(2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_every_bit_is_that_of_one_process(actors, mode):
    mine = play(envs(actors, autoreset_mode=mode), seed=7, steps=2 * HORIZON)
    assert bits(mine) == bits(play(envs(autoreset_mode=mode), seed=7, steps=2 * HORIZON))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ray.kill", "SIGKILL"])
def test_an_actor_that_dies_in_mid_episode_changes_no_bit(actors, alone, how):
    env, decisions = envs(actors), 0

    class Killer(RandomPolicy):
        def act(self, observation):
            nonlocal decisions
            decisions += 1
            if decisions in (3, 8):  # in the middle of either episode
                victim = ray_workers._ACTORS[decisions % 2]
                if how == "ray.kill":
                    ray.kill(victim)
                else:
                    os.kill(ray.get(victim.__ray_call__.remote(lambda actor: os.getpid())), signal.SIGKILL)
            return super().act(observation)

    env.reset()
    before = list(ray_workers._ACTORS)
    assert bits(play(env, Killer(), steps=2 * HORIZON)) == bits(alone)
    assert not set(before) & set(ray_workers._ACTORS)
    env.close()


@pytest.mark.slow
def test_work_that_was_done_but_not_answered_does_not_count_twice(actors, alone, tmp_path):
    (tmp_path / "deaths").write_text("xx", encoding="utf-8")
    env = envs()
    env.engine = ParallelEngine(partial(mortal.Mortal, env.task, tmp_path / "deaths"), 3, actors, env.task.slots)
    undisturbed = play(envs(engine="loop"), steps=HORIZON)
    assert bits(play(env, steps=HORIZON)) == bits(undisturbed)
    assert (tmp_path / "deaths").read_text(encoding="utf-8") == "", "nobody died"


@pytest.mark.slow
def test_what_kills_every_replacement_ends_in_an_error(actors, tmp_path):
    (tmp_path / "deaths").write_text("x" * 9, encoding="utf-8")
    env = envs()
    env.engine = ParallelEngine(partial(mortal.Mortal, env.task, tmp_path / "deaths"), 3, actors, env.task.slots)
    with pytest.raises(ChildProcessError, match="Ray worker 2 of 2 died 4 times over the same call"):
        play(env)
    assert len((tmp_path / "deaths").read_text(encoding="utf-8")) == 5


@pytest.mark.slow
def test_a_call_that_was_interrupted_is_made_good_by_the_next(actors, alone, monkeypatch):
    env = envs(actors)
    env.reset(seed=0)
    policy = RandomPolicy()
    policy.reset(3, 0)

    def interrupted(asked, timeout):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ray, "get", interrupted)
        with pytest.raises(KeyboardInterrupt):
            env.step(policy.act(env._observe()))
    policy.reset(3, 0)
    assert bits(env.step(policy.act(env._observe()))) == bits(alone[0][0])


@pytest.mark.slow
def test_more_workers_than_the_cluster_has_cpus_are_refused(actors):
    with pytest.raises(ValueError, match="expected 3 in the cluster, found 2"):
        connect(3, None)


@pytest.mark.slow
def test_who_waits_for_a_machine_says_so_once_and_goes_on_when_it_comes(actors, caplog, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 0.5)
    ray_workers.dismiss_actors()
    busy = [ray.remote(num_cpus=1)(mortal.Idle).remote() for _ in range(2)]  # all CPUs
    ray.get([actor.ask.remote() for actor in busy])
    late = threading.Timer(3, ray.kill, [busy[0]])
    late.start()
    asked = [ray.remote(num_cpus=1)(mortal.Idle).remote().ask.remote()]
    assert answered(asked, ask_again=list, give_up=list, worker=2, workers=3) == ["here"]
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("The Ray cluster has CPUs for 2 of 3 workers; what the others would do waits")
    late.join()
    ray.kill(busy[1])


@pytest.mark.slow
def test_a_piece_of_a_study_whose_process_dies_is_run_again(actors, tmp_path):
    (tmp_path / "deaths").write_text("x", encoding="utf-8")
    with ray_pool(2) as submit:
        assert submit(mortal.survivor, tmp_path / "deaths").result() == "done"
    with pytest.raises(ValueError, match=r"^no such thing$"), ray_pool(2) as submit:  # as it was raised
        submit(mortal.refuse).result()


@pytest.mark.slow
def test_a_training_is_the_same_on_ray(actors):
    def rows(**options):
        config = TamiyoConfig(task=("wine",), num_envs=2, updates=1, eval_episodes=2, **options)
        (row,) = train_tamiyo(config).metrics
        return {name: value for name, value in row.items() if "seconds" not in name and "per_second" not in name}

    assert rows(ray_workers=2) == rows(num_workers=1)
