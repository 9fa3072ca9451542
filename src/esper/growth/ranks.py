"""Several processes that train one network (``torch.distributed``): they see the same numbers and decide alike."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from esper.network.growing_network import GrowingNetwork

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together; 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_wrapped(parallel: GrowingParallel | None, *, has_trained: bool) -> None:
    """Raise ValueError where several processes train, and not through :class:`GrowingParallel`.

    A ``DistributedDataParallel`` of one's own was made before there were seeds: their gradients would stay apart, and
    the ranks with them. So would all gradients if the host itself was called.

    Args:
        parallel: What was made of the network, if anything.
        has_trained: Whether the optimizer has made a step since the last check.
    """
    if world_size() == 1:
        return
    if parallel is None:
        raise ValueError(
            f"torch.distributed runs {world_size()} processes, but the network is not trained through "
            "growth.parallel(): the seeds' gradients would not be averaged and the ranks would part. Give Growth the "
            "module without DistributedDataParallel, and train what growth.parallel() returns"
        )
    if has_trained and not parallel.has_trained:
        raise ValueError(
            "the optimizer has made steps, but what growth.parallel() returned was not called in training: gradients "
            "were not averaged and the ranks have parted. Call that in the training loop, not the model inside it"
        )
    parallel.has_trained = False


def gather(value: T) -> list[T]:
    """The value of every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(value: T) -> T:
    """The value of rank 0."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mean(values: Sequence[float | None]) -> list[float | None]:
    """The means over the ranks; ``None`` where a rank does not know the value."""
    columns = zip(*gather(list(values)), strict=True)
    return [None if None in column else sum(column) / len(column) for column in columns]


def average_statistics(network: GrowingNetwork) -> None:
    """Every rank has seen other batches; what policies and governor read must agree."""
    if world_size() == 1:
        return
    kept = [(slot.statistics, name) for slot in network.slots for name in vars(slot.statistics)]
    kept.append((network, "host_gradient_rms"))  # type: ignore[arg-type]
    values = [getattr(owner, name) for owner, name in kept]
    averaged = mean([None if v is None else float(v) for v in values])
    for (owner, name), value in zip(kept, averaged, strict=True):
        setattr(owner, name, None if value is None else torch.tensor(value))


class GrowingParallel(nn.Module):
    """``DistributedDataParallel`` around a host and its seeds; the wrapper inside is renewed after growth.

    Args:
        network: The growing network.
        options: Passed on to ``DistributedDataParallel``.
    """

    inner: DistributedDataParallel
    """The wrapper as it is now, for ``no_sync()`` and the like."""

    def __init__(self, network: GrowingNetwork, options: dict[str, Any]) -> None:
        super().__init__()
        self.has_trained = False
        """Whether it has been called with gradients since this was last set to false."""
        self._network = network
        self._options = options
        network.leave_gradients()
        self.renew()

    def renew(self) -> None:
        """Wrap the network as it is now; every rank must do so at the same point."""
        if "inner" in self._modules:
            del self.inner
            gc.collect()  # the old wrapper must take its hooks off the parameters before the new one comes
        self.inner = DistributedDataParallel(self._network.model, **self._options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the host answers."""
        self.has_trained |= torch.is_grad_enabled()
        return self.inner(*args, **kwargs)
