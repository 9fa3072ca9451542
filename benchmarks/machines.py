"""Commands on a Ray cluster of several machines, of which one is lost, cut off, or slow; compared byte for byte.

    sudo -E python benchmarks/machines.py train
    sudo -E python benchmarks/machines.py compare --how killed --times 5
    sudo -E python benchmarks/machines.py ppo --how cable --times 5
    sudo -E python benchmarks/machines.py train --how starved
    sudo -E python benchmarks/machines.py train --how headless

Each machine has a network, a host name, processes, a ``/tmp`` and a shared memory of its own (Linux namespaces, which
need root and iproute2), and shares with the others the kernel and what is installed. The command and the head of the
cluster are on the first, which has no CPU to give; its two workers are on others. What happens:

- ``well``: nothing;
- ``killed``: all processes of a machine that has a worker end at a random moment; a fourth is there to take over;
- ``cable``: its cable is taken away, and put back after ``--seconds``;
- ``starved``: it is killed without a fourth, which comes after ``--seconds``;
- ``headless``: the command is on a machine that is not the head, which is killed; it is resumed with a new one.

What comes of it must be that of an undisturbed run on one machine without Ray. Prints one line per run.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from kill import COMPARE, TRAIN, found

PORT = 6379
BRIDGE = "esper-bridge"
PPO = ["ppo", "--env", "CartPole-v1", "--updates", "20", "--num-envs", "4", "--num-steps", "64", "--episodes", "0",
       "--checkpoint-every", "1", "--quiet"]  # fmt: skip
GIVEN = {"train": [*TRAIN, "--num-envs", "4"], "compare": COMPARE, "ppo": PPO}
ELSEWHERE = {"train": ["--num-workers", "2"], "compare": ["--workers", "2"], "ppo": ["--vectorization", "sync"]}
PLACE = "mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && hostname {name} && exec sleep infinity"


def sh(*words: str, check: bool = True) -> str:
    """Run a command; what it prints."""
    return subprocess.run(words, check=check, capture_output=True, text=True).stdout


class Machine:
    """A machine of its own, but for kernel and file system.

    Args:
        number: 1 and up; the last part of its address.
    """

    def __init__(self, number: int) -> None:
        self.name, self.address = f"esper-{number}", f"10.77.0.{number}"
        self.cable = f"esper-cable-{number}"
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        sh("ip", "link", "set", self.cable, "master", BRIDGE, "up")
        inside = ["ip", "-n", self.name]
        sh(*inside, "link", "set", "lo", "up")
        sh(*inside, "link", "set", "eth0", "up")
        sh(*inside, "address", "add", f"{self.address}/24", "dev", "eth0")
        sh(*inside, "route", "add", "default", "dev", "eth0")  # by which Ray finds out its own address
        spaces = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        start = ["ip", "netns", "exec", self.name, *spaces, "bash", "-c", PLACE.format(name=self.name)]
        self.outer = subprocess.Popen(
            start, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.first = ""
        while not self.first or Path(f"/proc/{self.first}/comm").read_text().strip() != "sleep":
            time.sleep(0.05)
            self.first = sh("pgrep", "-P", str(self.outer.pid), check=False).strip()

    def begin(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command here; its errors and warnings go to ``log``."""
        enter = ["nsenter", "--target", self.first, "--net", "--mount", "--pid", "--uts", "--wd=/tmp"]
        with log.open("ab") as output:
            return subprocess.Popen([*enter, *words], stdout=subprocess.DEVNULL, stderr=output)

    def join(self, head: Machine, cpus: int, log: Path) -> None:
        """Become part of a cluster, or its head."""
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        where = where if head is self else [f"--address={head.address}:{PORT}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", *where]
        started = self.begin(*ray, f"--node-ip-address={self.address}", f"--num-cpus={cpus}", log=log)
        if started.wait() != 0:
            raise RuntimeError(f"{self.name} has not joined: {log.read_text()}")

    def works(self) -> bool:
        """Whether a worker of Esper is here, rather than one that Ray keeps for later."""
        return any("ray::_" in title for title in self.titles())

    def titles(self) -> list[str]:
        """Of all processes."""
        titles = []
        for process in sh("ip", "netns", "pids", self.name, check=False).split():
            with suppress(OSError):
                titles.append(Path(f"/proc/{process}/cmdline").read_text())
        return titles

    def files(self, path: Path) -> Path:
        """One of its files, as it is called from outside."""
        return Path(f"/proc/{self.first}/root") / path.relative_to("/")

    def kill(self) -> None:
        """End everything on it at once."""
        with suppress(ProcessLookupError):
            os.kill(int(self.first), 9)
        self.outer.wait()

    def remove(self) -> None:
        self.kill()
        sh("ip", "link", "delete", self.cable, check=False)
        sh("ip", "netns", "delete", self.name, check=False)


class Cluster:
    """A head and three more machines on one switch; each but the head has a CPU.

    Args:
        how: What will happen to it.
        logs: Where Ray writes what it says.
    """

    def __init__(self, how: str, logs: Path) -> None:
        self.machines: list[Machine] = []
        self.how, self.log = how, logs / "ray.txt"

    def __enter__(self) -> Cluster:
        try:
            sh("ip", "link", "add", BRIDGE, "type", "bridge")
            sh("ip", "link", "set", BRIDGE, "up")
            for i in (1, 2, 3, 4):
                self.machines.append(Machine(i))
            self.head = self.machines[0]
            self.gather(self.machines[: 3 if self.how == "starved" else 4])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.remove()
        sh("ip", "link", "delete", BRIDGE, check=False)

    def gather(self, machines: list[Machine]) -> None:
        """Let these be a cluster; the first is the head, unless the head is there."""
        for machine in machines:
            machine.join(self.head, 0 if machine is self.head else 1, self.log)

    @property
    def where(self) -> str:
        return f"{self.head.address}:{PORT}"


def command(name: str, out: Path, *, address: str | None) -> list[str]:
    """What begins a command in ``out``, on a cluster or without one."""
    options = ELSEWHERE[name] if address is None else ["--ray-workers", "2", "--address", address]
    place = "--run-dir" if name == "ppo" else "--out"
    return [sys.executable, "-m", "esper", *GIVEN[name], *options, place, str(out)]


def resumed(name: str, out: Path, address: str) -> list[str]:
    """What goes on with it, on another cluster."""
    if name == "ppo":
        return [*command(name, out, address=address), "--resume"]
    if name == "compare":
        return command(name, out, address=address)
    return [sys.executable, "-m", "esper", "train", "--resume", str(out), "--address", address, "--quiet"]


def disturb(cluster: Cluster, moment: float, seconds: float, running: subprocess.Popen[bytes]) -> str:
    """Let it happen at a random moment at which a machine has a worker; what happened."""
    if cluster.how == "well":
        return "nothing happened"
    started = time.monotonic()
    working: list[Machine] = []
    while running.poll() is None and not (working and time.monotonic() - started >= moment):
        time.sleep(0.05)
        working = [machine for machine in cluster.machines[1:] if machine.works()]
    if running.poll() is not None:
        return "nothing, it had ended"
    if cluster.how == "headless":
        cluster.head.kill()
        return f"the head killed after {time.monotonic() - started:.1f} s"
    victim = random.choice(working)
    told = f"{victim.name} of {[machine.name for machine in working]} after {time.monotonic() - started:.1f} s"
    if cluster.how == "cable":
        sh("ip", "link", "set", victim.cable, "down")
        with suppress(subprocess.TimeoutExpired):
            running.wait(timeout=seconds)
        done = running.poll() is not None
        sh("ip", "link", "set", victim.cable, "up")
        return f"the cable of {told} taken away for {seconds:.0f} s{', in which it ended' if done else ''}"
    victim.kill()
    if cluster.how == "starved":
        time.sleep(seconds)
        cluster.gather(cluster.machines[3:])
        told += f", another there {seconds:.0f} s later"
    return f"killed {told}"


def trial(options: argparse.Namespace, expected: dict[str, object], usual: float, logs: Path) -> tuple[str, bool]:
    """One run on a cluster of its own; what happened, and whether its result is the one expected."""
    with Cluster(options.how, logs) as cluster:
        here = cluster.machines[3 if options.how == "headless" else 0]
        out, log = Path("/tmp/run"), logs / "command.txt"  # noqa: S108 (of a machine of its own)
        log.unlink(missing_ok=True)
        started = time.monotonic()
        running = here.begin(*command(options.command, out, address=cluster.where), log=log)
        happened = disturb(cluster, random.uniform(0, usual / 2), options.seconds, running)
        code = running.wait()
        happened += f"; exit code {code} after {time.monotonic() - started:.0f} s"
        if options.how == "headless" and code != 0:
            print(f"  it said: {log.read_text().strip()[-600:]}", flush=True)
            cluster.head = cluster.machines[1]
            for machine in cluster.machines[1:]:
                machine.begin(sys.executable, "-m", "ray.scripts.scripts", "stop", "--force", log=cluster.log).wait()
            cluster.gather(cluster.machines[1:3])
            cluster.gather(cluster.machines[3:])
            code = here.begin(*resumed(options.command, out, cluster.where), log=log).wait()
            happened += f"; resumed, exit code {code}"
        if text := log.read_text().strip():
            print(f"  it said: {text[-1200:]}", flush=True)
        return happened, code == 0 and found(options.command, here.files(out)) == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=sorted(GIVEN))
    parser.add_argument("--how", nargs="+", default=["well"],
                        choices=["well", "killed", "cable", "starved", "headless"])  # fmt: skip
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a cable away, and until another machine comes")
    parser.add_argument("--seed", type=int, default=0)
    hows, options = parser.parse_args().how, parser.parse_args()
    random.seed(options.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the machines end, too
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # of every machine
    with tempfile.TemporaryDirectory() as place:
        whole, started = Path(place) / "whole", time.monotonic()
        subprocess.run(command(options.command, whole, address=None), check=True, capture_output=True)
        usual, expected = time.monotonic() - started, found(options.command, whole)
        for options.how in hows:
            lost = 0
            for i in range(options.times):
                logs = Path(place) / f"{options.how}-{i}"
                logs.mkdir()
                happened, same = trial(options, expected, usual, logs)
                lost += not same
                print(f"run {i + 1}: {happened}: {'the same' if same else 'LOST'}", flush=True)
            print(f"{options.command}, {options.how}: {options.times} runs, {lost} differ ({usual:.0f} s alone)")
        shutil.rmtree(whole)


if __name__ == "__main__":
    main()
