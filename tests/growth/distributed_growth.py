"""One rank of a distributed growth: ``python distributed_growth.py RANK WORLD RENDEZVOUS OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent.parent))

import esper
from growing import Loop


def other_wrappers_are_refused() -> None:
    mine = Loop()
    wrapped = DistributedDataParallel(mine.model)
    with pytest.raises(ValueError, match="expected the host itself, got it inside DistributedDataParallel"):
        esper.Growth(wrapped, mine.optimizer, slots=["1"], example_input=mine.x[:2])
    mine.train(2, net=wrapped)  # as it was before there was Growth, which has wrapped.module
    with pytest.raises(ValueError, match=r"not trained through growth\.parallel\(\)"):
        mine.growth.step(mine.evaluate)
    mine.growth.parallel()
    with pytest.raises(ValueError, match="was not called in training"):
        mine.growth.step(mine.evaluate)


def main(rank: int, world: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    other_wrappers_are_refused()
    loop = Loop("image", policy="random", seed=4, slots=["conv1", "block"])
    torch.manual_seed(100 + rank)  # other batches, and other noise, on every rank
    net = loop.growth.parallel()
    full, target = loop.x, loop.y
    seeds = 0
    for _ in range(10):
        for _ in range(3):
            mine = torch.randperm(len(full))[:8]
            loop.model.train()
            loop.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(full[mine]), target[mine]).backward()
            loop.optimizer.step()
        noisy = lambda: (loop.evaluate()[0], float(torch.rand(())))  # noqa: E731 - ranks must agree nonetheless
        loop.growth.step(noisy, train_loss=float(rank))
        seeds = max(seeds, len(loop.growth.network.seed_parameters()))
    parameters = [*loop.model.parameters(), *loop.growth.network.seed_parameters()]
    result = {
        "parameters": [p.detach() for p in parameters],
        "decided": [step.decided for step in loop.growth.history],
        "scores": [step.score for step in loop.growth.history],
        "seeds": seeds,
    }
    torch.save(result, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
