"""Grow a network inside a LightningModule: one callback."""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from esper.integrations.lightning import GrowthCallback
from esper.tasks import get_task

data = get_task("digits").splits()


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)
        )

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def evaluate(module: Digits) -> tuple[float, float]:
    logits = module.model.eval()(data.val_x)
    return nn.functional.cross_entropy(logits, data.val_y).item(), (
        logits.argmax(1) == data.val_y
    ).float().mean().item()


growing = GrowthCallback(evaluate, example_input=data.train_x[:2], budget=5000)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=8, accelerator="cpu", callbacks=[growing], **quiet)
trainer.fit(Digits(), DataLoader(TensorDataset(data.train_x, data.train_y), batch_size=64, shuffle=True))
growing.growth.summary()
