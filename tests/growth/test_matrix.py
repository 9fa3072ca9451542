"""What works with what: optimizers, habits of training loops and kinds of host, each against a network grown by hand.

By hand the seed is composed as the mathematics says: ``h + alpha · effect(h)`` where it is blended in; before that it
is trained by the isolated gradient at h, of which the host knows nothing.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

import esper
from esper.network.seed import plant
from network.hosts import SPECS, WAIT, advance, fossilize, germinate, host_case, of_host, prune, same

ALPHA = 0.7
PLAN = [germinate("mlp"), advance(target=ALPHA), fossilize(), WAIT]
"""So the host is alone in the first interval, and the seed isolated in the second, on probation in the third, kept."""

EPS = 1e-4
"""So that Adam does not make a step of the rounding in a gradient that is zero: a bias before a norm has such a one."""

OPTIMIZERS = {
    "SGD with momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=0.01, eps=EPS),
    "AdamW": lambda p: AdamW(p, lr=0.01, eps=EPS, weight_decay=0.1),
}


class Net:
    """A network and its optimizer in a training loop."""

    def __init__(self, model, make_optimizer, x, y):
        self.model, self.x, self.y = model, x, y
        self.optimizer = make_optimizer(model.parameters())
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)

    def backward(self, part=slice(None), factor=1.0, through=lambda loss: loss, context=nullcontext):
        with context():
            output = self.model(self.x[part])
        loss = nn.functional.cross_entropy(output.flatten(0, -2).float(), self.y[part].flatten())
        through(loss * factor).backward()
        return loss

    def before_step(self, factor=1.0):
        """Nothing: the gradients are where they must be."""


class Around(nn.Module):
    """The host, and the seed where it is trained like any other module."""

    def __init__(self, host):
        super().__init__()
        self.host = host

    def forward(self, x):
        return self.host(x)


class NetByHand(Net):
    """A host with one seed at its first slot. The gradients of the isolated seed are computed here."""

    def __init__(self, case, make_optimizer, y):
        super().__init__(Around(case.model), make_optimizer, case.x, y)
        self.seed, self.alpha = None, None
        self.gradients = []
        self.slot = case.model.get_submodule(case.slots[0])
        self.slot.register_forward_hook(self.join)

    def germinate(self, kind):
        dtype = next(self.model.parameters()).dtype
        self.seed = plant("mlp", SPECS[kind], "add", entropy=(0, 0, 0), device=torch.device("cpu"), dtype=dtype)
        self.gradients = [0.0] * len(list(self.seed.parameters()))
        self.optimizer.param_groups[0]["params"].extend(self.seed.parameters())

    def blend(self, alpha):
        self.alpha = torch.tensor(alpha)  # as a number it would not be rounded to bfloat16
        self.model.seed = self.seed

    def join(self, module, args, h):
        if self.seed is None:
            return h
        if self.alpha is not None:
            return h + self.alpha * self.seed.effect(h)
        before = h.detach().clone()
        effect = self.seed.effect(before)
        h = h.clone()
        h.register_hook(lambda gradient: self.learn(gradient, before, effect))
        return h

    def learn(self, gradient, h, effect):
        rms = lambda t: t.float().square().mean().sqrt()  # noqa: E731
        upstream = (gradient + rms(gradient) / (0.5 * rms(h)) * effect).to(effect.dtype)
        found = torch.autograd.grad(effect, list(self.seed.parameters()), upstream.detach())
        self.gradients = [a + b for a, b in zip(self.gradients, found, strict=True)]

    def before_step(self, factor=1.0):
        if self.seed is not None and self.alpha is None:
            for parameter, gradient in zip(self.seed.parameters(), self.gradients, strict=True):
                parameter.grad = gradient * factor
            self.gradients = [0.0] * len(self.gradients)


# ------------------------------------------------------------------------------------------- habits of loops


def plain(net):
    net.optimizer.zero_grad()
    net.backward()
    net.before_step()
    net.optimizer.step()


def cleared_on_the_model(net):
    net.model.zero_grad()
    net.backward()
    net.before_step()
    net.optimizer.step()


def accumulated(net):
    net.optimizer.zero_grad()
    for part in (slice(0, 8), slice(8, 16)):
        net.backward(part, factor=0.5)
    net.before_step()
    net.optimizer.step()


def clipped(net):
    net.optimizer.zero_grad()
    net.backward()
    norm = nn.utils.clip_grad_norm_(net.model.parameters(), 0.05)
    net.before_step(factor=min(1.0, 0.05 / (float(norm) + 1e-6)))
    net.optimizer.step()


def closure(net):
    def run():
        net.optimizer.zero_grad()
        loss = net.backward()
        net.before_step()
        return loss

    net.optimizer.step(run)


def scaled(net):
    net.optimizer.zero_grad()
    net.backward(through=net.scaler.scale)
    net.before_step()
    net.scaler.step(net.optimizer)
    net.scaler.update()


def autocast(net):
    net.optimizer.zero_grad()
    net.backward(context=lambda: torch.autocast("cpu", torch.bfloat16))
    net.before_step()
    net.optimizer.step()


def doubled(net):
    net.model.double()
    net.x = net.x.double() if net.x.is_floating_point() else net.x
    plain(net)


LOOPS = {
    "`optimizer.zero_grad()`": plain,
    "`model.zero_grad()`": cleared_on_the_model,
    "accumulated gradients": accumulated,
    "`clip_grad_norm_(model.parameters(), …)`": clipped,
    "`optimizer.step(closure)`": closure,
    "`GradScaler`": scaled,
    "`torch.autocast` in bfloat16": autocast,
    "`model.double()` after Growth is built": doubled,
}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("loop", LOOPS.values(), ids=lambda loop: loop.__name__)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_growth_is_what_one_would_do_by_hand(optimizer, loop, kind):
    case = host_case(kind, batch=16)
    y = torch.randint(0, 3, (16, 6) if kind == "causal" else (16,))
    by_hand = NetByHand(copy.deepcopy(case), OPTIMIZERS[optimizer], y)
    net = Net(case.model, OPTIMIZERS[optimizer], case.x, y)
    growth = esper.Growth(
        net.model,
        net.optimizer,
        slots=case.slots[:1],
        example_input=case.x[:2],
        policy=lambda run: PLAN[run.decision],
        blueprints=["mlp"],
        contributions=False,
        governor=False,
        causal=kind == "causal",
    )
    for change in (lambda: by_hand.germinate(kind), lambda: by_hand.blend(ALPHA), lambda: None, lambda: None):
        for each in (net, by_hand):
            for _ in range(2):
                loop(each)
        growth.step(lambda: (0.5, 0.5))
        change()
    assert growth.network.slots[0].stage.name == "FOSSILIZED"
    ours, theirs = growth.network.slots[0].seed.named_parameters(), dict(by_hand.seed.named_parameters())
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    for name, parameter in ours:
        torch.testing.assert_close(parameter, theirs[name], **tolerance)
    theirs = by_hand.model.host.state_dict()
    for name, value in of_host(net.model.state_dict().items()).items():
        torch.testing.assert_close(value, theirs[name], **tolerance)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_clearing_gradients_on_the_model_is_clearing_them_on_the_optimizer(momentum):
    """Bit for bit, through isolation, blending and a prune."""
    plan = [germinate("mlp"), germinate("norm", 1), advance(), prune(1), WAIT, WAIT]

    def run(loop):
        torch.manual_seed(5)
        case = host_case("vector", batch=16)
        net = Net(case.model, lambda p: SGD(p, lr=0.1, momentum=momentum), case.x, torch.arange(16) % 3)
        growth = esper.Growth(
            net.model,
            net.optimizer,
            slots=case.slots,
            example_input=case.x[:2],
            policy=lambda run: plan[run.decision],
            contributions=False,
        )
        for _ in range(5):
            for _ in range(3):
                loop(net)
            growth.step(lambda: (0.5, 0.5))
        assert growth.network.added_params > 0
        return dict(net.model.state_dict())

    assert same(run(cleared_on_the_model), run(plain))


def test_the_page_shows_this_table():
    page = Path(__file__).parents[2] / "docs" / "grow_your_own_model.md"
    rows = [f"| {name} |{' yes |' * len(SPECS)}" for name in LOOPS]
    table = "\n".join(["| | vectors | sequences | causal sequences | images |", "|---|---|---|---|---|", *rows, ""])
    assert list(SPECS) == ["vector", "sequence", "causal", "image"]
    assert table in page.read_text(encoding="utf-8"), f"write there:\n{table}"
