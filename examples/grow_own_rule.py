"""A rule of one's own: put a normalisation into every slot, keep those that help at all."""

import torch
from torch import nn

import esper
from esper import Decision, Op


def rule(run):
    for slot in run.slots_allowing(Op.FOSSILIZE):
        helps = (run.observation.slot(slot, "contribution") or 0) > 0
        run.reason = "it helps" if helps else "it does not help"  # for growth.explain()
        return Decision(Op.FOSSILIZE if helps else Op.PRUNE, slot)
    for slot in run.slots_allowing(Op.ADVANCE):
        return Decision(Op.ADVANCE, slot)
    for slot in run.slots_allowing(Op.GERMINATE):
        return Decision(Op.GERMINATE, slot, "norm")
    return Decision(Op.WAIT)


torch.manual_seed(0)
x = torch.randn(512, 8)
y = (x.prod(1) > 0).long()
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
growth = esper.Growth(model, optimizer, slots=["1", "3"], example_input=x[:2], policy=rule, horizon=12)

for _ in range(12):
    for batch in torch.randperm(400).split(32):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    growth.step(lambda: (0.0, float((model(x[400:]).argmax(1) == y[400:]).float().mean())))
growth.summary()
