"""Ray, for work on more than one machine: the cluster at an address, or one of this machine alone."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

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
                said = next(iter(str(error).splitlines()), "")
                raise ConnectionError(f"no Ray cluster answers at '{address}' ({said}); {HINT}") from error
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < workers:
        raise ValueError(f"each Ray worker takes a CPU: expected {workers} in the cluster, found {cpus}; ask for fewer")


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
