"""The Lightning callback under a real Trainer, interrupted and resumed from Lightning's own checkpoint."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esper.growth.log import VERDICT, numbers, step_row
from esper.network.seed import plant
from network.hosts import WAIT, advance, fossilize, germinate, mlp, of_host, prune, same

lightning = pytest.importorskip("lightning")
integration = pytest.importorskip("esper.integrations.lightning")

pytestmark = pytest.mark.filterwarnings("ignore")

X, Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
PLAN = [germinate("mlp"), advance(tempo="fast"), *[germinate("lora", 1)], fossilize(0)]


class Module(lightning.LightningModule):
    """Its metric says which epoch was best; it remembers what the network answered when it was validated."""

    best_epoch = 2

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = mlp()
        self.answers = {}

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch):
        self.answers[self.current_epoch] = self.model(X)
        self.log("good", -float(abs(self.current_epoch - self.best_epoch)))

    def test_step(self, batch):
        self.answers["test"] = self.model(X)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def evaluate(module):
    loss = nn.functional.cross_entropy(module.model.eval()(X), Y)
    return loss.item(), torch.exp(-loss).item()


def loader():
    return DataLoader(TensorDataset(X, Y), batch_size=8)


def callback(plan=PLAN):
    return integration.GrowthCallback(
        evaluate, slots=["1", "3"], example_input=X[:2], policy=lambda run: plan[run.decision], horizon=5
    )


def make_trainer(*callbacks, **options):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False} | options
    return lightning.Trainer(accelerator="cpu", callbacks=list(callbacks), num_sanity_val_steps=0, **options)


def fit(epochs, path, *others, ckpt_path=None, **options):
    growing = callback()
    saving = lightning.pytorch.callbacks.ModelCheckpoint(path, save_last=True, **options)
    make_trainer(growing, *others, saving, max_epochs=epochs).fit(Module(), loader(), loader(), ckpt_path=ckpt_path)
    return growing.growth


def test_the_trainers_loggers_are_told_of_every_step_and_callbacks_can_watch_it(tmp_path):
    growing = callback()
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
    watching = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, monitor="growth/score", mode="max")
    trainer = make_trainer(growing, watching, max_epochs=5, logger=logger)
    trainer.fit(Module(), loader(), loader())
    with open(f"{logger.log_dir}/metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["growth/score"]]
    for row, step in zip(rows, growing.growth.history, strict=True):
        told = {name: float(value) for name, value in row.items() if name.startswith("growth/") and value}
        assert told == pytest.approx(numbers(step_row(step)) | {k: told[k] for k in told if named_in_verdict(k)})
    assert float(rows[-1]["growth/J"]) == pytest.approx(growing.growth.result().J)
    best = max(step.score for step in growing.growth.history)
    assert float(watching.best_model_score) == pytest.approx(best)


def named_in_verdict(name):
    return name in {entry.name for entry in VERDICT}


@pytest.mark.parametrize("at_the_end", [True, False], ids=["saved after the step", "saved before it"])
def test_it_grows_and_resumes_from_lightnings_checkpoint(at_the_end, tmp_path):
    straight = fit(5, tmp_path / "straight", save_on_train_epoch_end=at_the_end)
    fit(3, tmp_path / "stopped", save_on_train_epoch_end=at_the_end)
    last = tmp_path / "stopped" / "last.ckpt"
    with pytest.raises(RuntimeError, match=r"Unexpected key.*esper_seed"):
        make_trainer().test(Module(), loader(), ckpt_path=last, verbose=False)  # without the callback
    resumed = fit(5, tmp_path / "resumed", ckpt_path=last, save_on_train_epoch_end=at_the_end)
    assert [step.decided for step in resumed.history] == [step.decided for step in straight.history]
    assert [step.loss for step in resumed.history] == [step.loss for step in straight.history]
    assert resumed.network.slots[0].stage.name == "FOSSILIZED"
    assert resumed.finished


@pytest.mark.parametrize("at_the_end", [True, False], ids=["saved after the step", "saved before it"])
@pytest.mark.parametrize("plan", [[*PLAN[:2], WAIT, prune(), WAIT], [*PLAN[:2], prune(), WAIT, WAIT]])
def test_the_best_checkpoint_is_tested_with_the_seeds_that_it_had(plan, at_the_end, tmp_path):
    """Saved after the decision at the end of its epoch, it means the network that was validated before."""
    growing, module = callback(plan), Module()
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path, monitor="good", mode="max", save_on_train_epoch_end=at_the_end
    )
    trainer = make_trainer(growing, saving, max_epochs=5)
    trainer.fit(module, loader(), loader())
    assert growing.growth.network.slots[0].seed is None, "at the end it has been pruned"
    trainer.test(module, loader(), ckpt_path="best", verbose=False)
    best = module.answers[2]
    assert growing.growth.network.slots[0].alpha > 0
    assert torch.equal(module.answers["test"], best)
    assert torch.equal(growing.growth.grown_model()(X), best)
    assert len(growing.growth.history) == 5

    fresh, elsewhere = callback(plan), make_trainer(callback(plan))
    for new in (Module(), Module()):
        for _ in range(2):  # a second test takes the seeds of the first one out again
            elsewhere.test(new, loader(), ckpt_path=saving.best_model_path, verbose=False)
            assert torch.equal(new.answers.pop("test"), best)
    with pytest.raises(RuntimeError, match="no growth before"):
        fresh.growth  # noqa: B018


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"gradient_clip_val": 1e-3}])
def test_seeds_learn_under_lightnings_precision_and_clipping(options):
    growing = callback([germinate("mlp"), *[WAIT] * 9])
    trainer = make_trainer(growing, max_epochs=4, enable_checkpointing=False, **options)
    trainer.fit(Module(), loader())
    slot = growing.growth.network.slots[0]
    assert {p.dtype for p in slot.seed.parameters()} == {torch.float32}
    born = plant("mlp", slot.spec, "add", entropy=(0, 0, 0), device=slot.device, dtype=torch.float32)
    moved = [float((a != b).float().mean()) for a, b in zip(slot.seed.parameters(), born.parameters(), strict=True)]
    assert min(moved) > 0.8, moved


def test_clipping_in_lightnings_closure_does_not_feel_an_isolated_seed():
    hosts = []
    for plan in ([germinate("mlp"), germinate("norm", 1), *[WAIT] * 9], [WAIT] * 9):
        module = Module()
        trainer = make_trainer(callback(plan), max_epochs=4, enable_checkpointing=False, gradient_clip_val=1e-2)
        trainer.fit(module, loader())
        hosts.append(of_host(module.model.state_dict().items()))
    assert same(*hosts)


@pytest.mark.parametrize(
    "averaging",
    [
        lambda: lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.5),
        lambda: lightning.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1),
    ],
    ids=["EMA", "SWA"],
)
def test_averages_that_other_callbacks_keep_grow_along(averaging):
    plan = [germinate("mlp"), advance(), *[WAIT] * 9]
    growing, module = callback(plan), Module()
    trainer = make_trainer(growing, averaging(), max_epochs=5, enable_checkpointing=False)
    trainer.fit(module, loader())
    network = growing.growth.network
    assert network.slots[0].alpha == 1
    (follower,) = growing.growth._followers
    ((_, twin), _) = follower._pairs
    assert twin.alpha == 1
    seeds = zip(twin.seed.parameters(), network.slots[0].seed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in seeds), "at the end the network has become its average"
    loss, _ = evaluate(module)
    alone, _ = evaluate(Module())
    assert loss < alone


def test_a_checkpoint_of_an_average_is_tested_as_the_average(tmp_path):
    """Seeds included: what Lightning validated, and saved, are averaged weights."""
    plan, module = [germinate("mlp"), advance(target=0.7), *[WAIT] * 9], Module()
    averaging = lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.9)
    saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, save_last=True, save_on_train_epoch_end=True)
    make_trainer(callback(plan), averaging, saving, max_epochs=4).fit(module, loader(), loader())
    fresh = Module()
    make_trainer(callback(plan)).test(fresh, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert torch.equal(fresh.answers["test"], module.answers[3])


def test_a_fit_with_an_average_resumes_bit_for_bit(tmp_path):
    """At its end the model becomes its average, seeds included."""

    def run(epochs, name, ckpt_path=None):
        averaging = lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.9)
        growth = fit(epochs, tmp_path / name, averaging, ckpt_path=ckpt_path, save_on_train_epoch_end=True)
        return dict(growth.model.state_dict())

    straight = run(5, "straight")
    run(3, "stopped")
    assert same(run(5, "resumed", tmp_path / "stopped" / "last.ckpt"), straight)
