"""Grow a small transformer under the transformers Trainer: one callback."""

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from esper.integrations.transformers import GrowthCallback
from esper.tasks import get_task

data = get_task("digits").splits()
size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
model = ViTForImageClassification(ViTConfig(**size, image_size=8, patch_size=2, num_channels=1, num_labels=10))
train = [{"pixel_values": x, "labels": y} for x, y in zip(data.train_x, data.train_y, strict=True)]


def evaluate(model: ViTForImageClassification) -> tuple[float, float]:
    output = model.eval()(pixel_values=data.val_x, labels=data.val_y)
    return output.loss.item(), (output.logits.argmax(1) == data.val_y).float().mean().item()


growing = GrowthCallback(evaluate, example_input={"pixel_values": torch.zeros(2, 1, 8, 8)}, budget=5000)
arguments = TrainingArguments(
    "trained",
    num_train_epochs=6,
    per_device_train_batch_size=64,
    learning_rate=3e-3,
    use_cpu=True,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    logging_strategy="no",
)
Trainer(model, arguments, train_dataset=train, callbacks=[growing]).train()
growing.growth.summary()
