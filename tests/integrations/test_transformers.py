"""transformers' own models as hosts, and the callback under a real Trainer; toy sizes, random weights."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from rich.console import Console

import esper
from esper.actions import Decision
from esper.tamiyo.policy.rules import FixedSchedulePolicy
from network.hosts import advance, germinate, of_host, wake

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
    assert list(of_host(model.state_dict().items())) == names
    assert {slot.alpha for slot in growth.network.slots} == {1.0}
    summary = io.StringIO()
    growth.summary(Console(file=summary, width=140))
    assert (": output[0]" in summary.getvalue()) == any(slot.output == "output[0]" for slot in growth.network.slots)
    with torch.no_grad():
        ours, theirs = growth.grown_model().eval()(**inputs).logits, model.eval()(**inputs).logits
    torch.testing.assert_close(ours, theirs)


RUN = """
import sys
sys.modules["esper"] = sys.modules["transformers"] = None  # from here on importing them fails
import torch
path, inputs, outputs = sys.argv[1:]
batches = torch.load(inputs, weights_only=True)
if path.endswith(".pt2"):
    run = torch.export.load(path).module()
    logits = [run(**batch)["logits"] for batch in batches]
else:
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = [torch.from_numpy(session.run(None, {k: v.numpy() for k, v in b.items()})[0]) for b in batches]
torch.save(logits, outputs)
"""


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        pytest.param(gpt2, "pt2", id="gpt2-pt2"),
        pytest.param(vit, "pt2", id="vit-pt2"),
        pytest.param(resnet, "pt2", id="resnet-pt2", marks=pytest.mark.slow),
        pytest.param(gpt2, "onnx", id="gpt2-onnx", marks=pytest.mark.slow),
    ],
)
def test_an_export_needs_neither_esper_nor_transformers(make, suffix, tmp_path):
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    model, inputs, slots, _ = make()
    optimizer = torch.optim.Adam(model.parameters())
    plan = [germinate("mlp"), advance(target=0.7), Decision(), Decision()]
    growth = esper.Growth(
        model, optimizer, slots=slots, example_input=inputs, policy=lambda run: plan[run.decision], contributions=False
    )
    for _ in range(3):
        growth.step(lambda: (0.5, 0.5))
    wake(growth.network.slots[0].seed)
    path = growth.export(tmp_path / f"grown.{suffix}")
    batches = [inputs, {name: value[:3].clone() for name, value in inputs.items()}]
    with torch.no_grad():
        expected = [model.eval()(**batch).logits for batch in batches]
    torch.save(batches, tmp_path / "in.pt")
    subprocess.run(
        [sys.executable, "-c", RUN, str(path), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")], check=True
    )
    for ours, theirs in zip(torch.load(tmp_path / "out.pt", weights_only=True), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


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
