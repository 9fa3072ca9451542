"""Ray, for work on more than one machine: the cluster at an address, or one of this machine alone."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

REPLACEMENTS = 3
"""How often a worker is replaced for the same call; what kills it each time is not chance."""

PATIENCE = 30.0
"""Seconds after which a command that waits for a CPU says so."""

_LOGGER = logging.getLogger(__name__)

HINT = "`auto` finds the cluster of this machine, HOST:PORT that of another; `ray start --head` starts one"


def installed_ray() -> Any:
    """The module ``ray``.

    Raises:
        ValueError: When Ray is not installed.
    """
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("Ray workers need one more package: pip install 'esper-lite[ray]'") from error
    return ray


def connect(workers: int, address: str | None) -> None:
    """Connect this process to a cluster; a connection that is there already stays.

    Args:
        workers: How many processes there will be, each on a CPU of its own.
        address: Of a running cluster, as in ``ray.init``; ``None`` starts one here, which ends with this process.

    Raises:
        ValueError: When Ray is not installed, for an address that is none, or for a cluster with too few CPUs.
        ConnectionError: When no cluster answers.
    """
    ray = installed_ray()
    if not ray.is_initialized():
        options = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of our own reports to nobody
            ray.init("local", num_cpus=workers, include_dashboard=False, **options)
        else:
            _knock(address)
            try:
                ray.init(address, **options)
            except (Exception, SystemExit) as error:  # the latter where what answers is not Ray
                if "AuthToken" in f"{error} {error.__cause__}":
                    raise ConnectionError(
                        f"the Ray cluster at '{address}' asks for a token, and this machine has another or none: copy "
                        "~/.ray/auth_token of its head to here"
                    ) from error
                said = next(iter(str(error).splitlines()), "")
                raise ConnectionError(f"no Ray cluster answers at '{address}' ({said}); {HINT}") from error
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < workers:
        raise ValueError(f"each Ray worker takes a CPU: expected {workers} in the cluster, found {cpus}; ask for fewer")


class Actors(list[Any]):
    """The Ray actors of this process for one kind of work, ``None`` in the place of one that is gone; they serve all.

    Args:
        kind: The class of what runs in an actor.
    """

    def __init__(self, kind: type) -> None:
        super().__init__()
        self._kind = kind

    def connect(self, workers: int, address: str | None) -> None:
        """Connect to a cluster, as :func:`connect` does, with room for ``workers`` actors."""
        if not installed_ray().is_initialized():
            self.clear()  # those of an earlier connection
        connect(workers, address)
        self.extend([None] * (workers - len(self)))

    def alive(self, i: int, *arguments: Any) -> Any:
        """The actor of a place; where there is none, one is made from these arguments."""
        if self[i] is None:
            self[i] = installed_ray().remote(num_cpus=1)(self._kind).remote(*arguments)
        return self[i]

    def give_up(self, i: int) -> None:
        """End the actor of a place."""
        ray = installed_ray()
        if self[i] is not None and ray.is_initialized():
            ray.kill(self[i])
        self[i] = None


def answered(
    asked: list[Any], *, ask_again: Callable[[], list[Any]], give_up: Callable[[], None], worker: int, workers: int
) -> list[Any]:
    """Wait for a worker's answers; where it dies, for those of its replacement.

    Where the cluster has lost a machine and has too few CPUs left, this waits until one joins it, and says so.

    Args:
        asked: The calls that it was sent.
        ask_again: Sends them to another, after what makes it what the dead one was.
        give_up: Lets go of the dead one.
        worker: Its place, from 0.
        workers: How many there are.

    Raises:
        ChildProcessError: When the last replacement has died, too.
    """
    ray, deaths, name, told = installed_ray(), 0, f"{worker + 1} of {workers}", False
    while True:
        try:
            return list(ray.get(asked, timeout=PATIENCE))
        except ray.exceptions.GetTimeoutError:
            told = told or say_what_is_missing(workers)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:  # it is dead, or its answer is lost
            give_up()
            deaths, why = deaths + 1, " ".join(str(error).split())
            if deaths > REPLACEMENTS:
                raise ChildProcessError(f"Ray worker {name} died {deaths} times over the same call: {why}") from error
            _LOGGER.warning("Ray worker %s is replaced, its share made again: %s", name, why)
            asked = ask_again()


def say_what_is_missing(workers: int) -> bool:
    """Warn where the cluster has fewer CPUs than workers; whether it has."""
    cpus = int(installed_ray().cluster_resources().get("CPU", 0))
    if cpus < workers:
        _LOGGER.warning(
            "The Ray cluster has CPUs for %d of %d workers; what the others would do waits for a machine to join it "
            "(Ctrl-C stops; what was done is kept)",
            cpus,
            workers,
        )
    return cpus < workers


def _knock(address: str) -> None:
    """Whether anything listens, since Ray itself waits for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"expected the address of a Ray cluster, got '{address}'; {HINT}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"no Ray cluster answers at '{address}' ({error}); {HINT}") from error
