"""A model whose parameters are spread over processes is refused by a sentence that helps."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import esper


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_sharded_model_is_refused_before_anything_grows(one_process):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    mesh = dist.init_device_mesh("cpu", (1,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"0\.weight and 3 more, by fully_shard.*growth\.parallel\(\)"):
        esper.Growth(model, optimizer, slots=["1"], example_input=torch.zeros(2, 4))
    assert not model[1]._forward_hooks
