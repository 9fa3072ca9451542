"""Grow a network of your own in a plain training loop: four lines are Esper's."""

import torch
from torch import nn

import esper
from esper.tasks import get_task

torch.manual_seed(0)
data = get_task("digits").splits()
x, y = data.train_x.flatten(1), data.train_y
val_x, val_y = data.val_x.flatten(1), data.val_y

model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
epochs = 20
growth = esper.Growth(model, optimizer, example_input=x[:2], budget=5000, horizon=epochs)


def evaluate() -> tuple[float, float]:
    logits = model.eval()(val_x)
    return float(nn.functional.cross_entropy(logits, val_y)), float((logits.argmax(1) == val_y).float().mean())


for _ in range(epochs):
    model.train()
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    growth.step(evaluate)

growth.summary()
growth.export("grown.pt2")
