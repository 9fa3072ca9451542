"""transformers' own models as hosts, and the callback under a real Trainer; toy sizes, random weights."""

from __future__ import annotations

import pytest
import torch

import esper
from esper.tamiyo.policy.rules import FixedSchedulePolicy

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    x = {"pixel_values": torch.randn(6, 3, 16, 16)}
    return transformers.ResNetForImageClassification(config), x, ["resnet.encoder.stages.*"], torch.arange(6) % 3


def vit():
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**size, image_size=8, patch_size=4, num_labels=3)
    x = {"pixel_values": torch.randn(6, 3, 8, 8)}
    return transformers.ViTForImageClassification(config), x, ["vit.layers.*"], torch.arange(6) % 3


def gpt2():
    size = {"n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=11, **size, bos_token_id=0, eos_token_id=0)
    tokens = torch.randint(0, 11, (6, 8))
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens}, ["transformer.h.*.attn"], tokens


@pytest.mark.parametrize("make", [resnet, vit, gpt2])
@pytest.mark.parametrize("auto", [False, True])
def test_models_of_transformers_grow(make, auto):
    model, inputs, slots, labels = make()
    names = list(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    policy = FixedSchedulePolicy("conv" if make is resnet else "mlp")
    growth = esper.Growth(
        model, optimizer, slots="auto" if auto else slots, example_input=inputs, policy=policy, horizon=7
    )
    assert growth.network.num_slots == 2
    if make is gpt2:
        assert all(slot.spec.causal for slot in growth.network.slots)
        assert auto or [slot.output for slot in growth.network.slots] == ["output[0]"] * 2

    def evaluate():
        return model.eval()(**inputs, labels=labels).loss, 0.5

    for _ in range(7):
        model.train()
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
        growth.step(evaluate)
    assert list(model.state_dict()) == names
    assert {slot.alpha for slot in growth.network.slots} == {1.0}
    with torch.no_grad():
        ours, theirs = growth.grown_model().eval()(**inputs).logits, model.eval()(**inputs).logits
    torch.testing.assert_close(ours, theirs)


def test_the_callback_grows_under_the_trainer(tmp_path):
    integration = pytest.importorskip("esper.integrations.transformers")
    model, inputs, slots, labels = vit()
    data = [{"pixel_values": x, "labels": y} for x, y in zip(inputs["pixel_values"], labels, strict=True)]
    growing = integration.GrowthCallback(
        lambda model: (model.eval()(**inputs, labels=labels).loss, 0.5),
        slots=slots,
        example_input=inputs,
        policy=FixedSchedulePolicy("mlp"),
    )
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=6, use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True
    )
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[growing]).train()
    growth = growing.growth
    assert len(growth.history) == 6
    assert growth.finished
    assert growth.network.added_params > 0
    state = growth.optimizer.state
    assert all(float(state[p]["step"]) >= 1 for p in growth.network.seed_parameters())
