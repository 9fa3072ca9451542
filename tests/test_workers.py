"""Worker processes are started once, serve every engine, die with their parent, and are named when they die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from episodes import quick_task
from esper.env.engine import parallel
from esper.env.growth_env import GrowthVectorEnv

PARENT = """
import multiprocessing, signal, time
from esper.workers import begin_worker, interrupts_held_back

def work(connection):
    begin_worker()
    connection.send("ready")
    connection.send(connection.recv())
    time.sleep(1000)

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
    context = multiprocessing.get_context("spawn")
    connection, other = context.Pipe()
    with interrupts_held_back():
        process = context.Process(target=work, args=(other,))
        process.start()
    connection.recv()
    print(process.pid, flush=True)
    connection.send(input())
    print(connection.recv(), flush=True)
    time.sleep(1000)
"""


def envs():
    return GrowthVectorEnv(2, quick_task("wine", horizon=4), num_workers=2, engine="loop")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_are_started_once_and_serve_every_engine():
    first, second = envs(), envs()
    pids = [worker.process.pid for worker in parallel._WORKERS]
    assert len(pids) == 2
    first.reset(seed=0)
    second.reset(seed=0)
    first.close()
    second.reset(seed=1)
    second.close()
    third = envs()
    third.reset(seed=0)
    third.close()
    assert [worker.process.pid for worker in parallel._WORKERS] == pids
    assert {process.pid for process in multiprocessing.active_children()} >= set(pids)


def test_a_killed_worker_is_named_with_its_exit_code_and_the_next_engine_has_a_new_one():
    env = envs()
    victim = parallel._WORKERS[1].process
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(
        ChildProcessError, match=rf"worker process {victim.pid} \(esper-worker-2.*SIGKILL, exit code -9"
    ):
        env.reset(seed=0)
    env.close()
    again = envs()
    again.reset(seed=0)
    again.close()


def test_an_error_in_a_worker_is_raised_here_and_the_worker_serves_on():
    env = envs()
    env.reset(seed=0)
    with pytest.raises(AttributeError, match="'seed'"):
        env.engine.reset({0: None, 1: None})
    assert env.reset(seed=0)[1]["score"].shape == (2,)
    env.close()


def test_a_call_that_was_interrupted_leaves_no_answer_for_the_next(monkeypatch):
    env = envs()

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(parallel._WORKERS[0].connection), "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            env.reset(seed=0)
    env.close()
    again = envs()
    assert again.reset(seed=0)[1]["score"].shape == (2,)
    again.close()


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_no_worker_outlives_its_parent_and_ctrl_c_is_for_the_parent_alone(signum, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    worker = int(parent.stdout.readline())
    os.kill(worker, signal.SIGINT)
    parent.stdin.write("still here\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "still here\n"
    parent.send_signal(signum)
    parent.communicate()
    deadline = time.monotonic() + 30
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)
