"""The Lightning callback under a real Trainer, interrupted and resumed from Lightning's own checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from network.hosts import advance, fossilize, germinate, mlp

lightning = pytest.importorskip("lightning")
integration = pytest.importorskip("esper.integrations.lightning")

pytestmark = pytest.mark.filterwarnings("ignore")

X, Y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
PLAN = [germinate("mlp"), advance(tempo="fast"), *[germinate("lora", 1)], fossilize(0)]


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = mlp()

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def evaluate(module):
    loss = nn.functional.cross_entropy(module.model.eval()(X), Y)
    return loss.item(), torch.exp(-loss).item()


def fit(epochs, path, ckpt_path=None):
    growing = integration.GrowthCallback(
        evaluate, slots=["1", "3"], example_input=X[:2], policy=lambda run: PLAN[run.decision], horizon=5
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saving = lightning.pytorch.callbacks.ModelCheckpoint(path, save_last=True, save_on_train_epoch_end=True)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[growing, saving], **quiet)
    trainer.fit(Module(), DataLoader(TensorDataset(X, Y), batch_size=8), ckpt_path=ckpt_path)
    return growing.growth


def test_it_grows_and_resumes_from_lightnings_checkpoint(tmp_path):
    straight = fit(5, tmp_path / "straight")
    fit(3, tmp_path / "stopped")
    resumed = fit(5, tmp_path / "resumed", ckpt_path=tmp_path / "stopped" / "last.ckpt")
    assert [step.decided for step in resumed.history] == [step.decided for step in straight.history]
    assert [step.loss for step in resumed.history] == [step.loss for step in straight.history]
    assert resumed.network.slots[0].stage.name == "FOSSILIZED"
    assert resumed.finished
