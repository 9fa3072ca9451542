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
from esper.growth.log import numbers, step_row
from esper.network.seed import plant
from esper.tamiyo.policy.rules import FixedSchedulePolicy
from network.hosts import advance, germinate, of_host, prune, wake

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


def bert():
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=11, **size, max_position_embeddings=8, num_labels=3)
    tokens = torch.randint(1, 11, (6, 8))
    return (
        transformers.BertForSequenceClassification(config),
        {"input_ids": tokens},
        ["bert.encoder.layer.*"],
        torch.arange(6) % 3,
    )


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


class Reported(transformers.TrainerCallback):
    """What a tracker of the Trainer's is told."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


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
    trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[growing, seen := Reported()])
    growing.log_through(trainer)
    trainer.train()
    growth = growing.growth
    rows = [entry for entry in trainer.state.log_history if "growth/score" in entry]
    for row, step in zip(rows, growth.history, strict=True):
        assert row.items() >= numbers(step_row(step)).items()
        assert row["epoch"] == step.decision
    assert "growth/J" in rows[-1]
    assert [logs for logs in seen.logs if "growth/score" in logs] == [
        {name: value for name, value in row.items() if name != "step"} for row in rows
    ], "what the Trainer reports to is told the same"
    assert len(growth.history) == 6
    assert growth.finished
    assert growth.network.added_params > 0
    state = growth.optimizer.state
    assert all(float(state[p]["step"]) >= 1 for p in growth.network.seed_parameters())


@pytest.mark.parametrize("make", [bert, vit, gpt2])
def test_a_grown_model_comes_back_from_save_pretrained_with_its_seeds(make, tmp_path):
    model, inputs, slots, _ = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    plan = [germinate("mlp"), advance(target=0.7), Decision(), Decision()]
    growth = esper.Growth(
        model, optimizer, slots=slots, example_input=inputs, policy=lambda run: plan[run.decision], contributions=False
    )
    for _ in range(3):
        growth.step(lambda: (0.5, 0.5))
    wake(growth.network.slots[0].seed)
    model.save_pretrained(tmp_path)
    growth.save(tmp_path)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        alone = type(model).from_pretrained(tmp_path)
        assert not torch.allclose(alone(**inputs).logits, expected), "the seeds are not in the host's own format"
        ours = esper.load_grown(tmp_path, alone, inputs)(**inputs).logits
        fresh = esper.load_grown(tmp_path, type(model)(model.config), inputs).eval()(**inputs).logits
    assert torch.equal(ours, expected)
    assert torch.equal(fresh, expected)


class Best(transformers.Trainer):
    """Its metric says which epoch was best."""

    best_epoch = 2

    def evaluate(self, *args, **kwargs):
        super().evaluate(*args, **kwargs)
        self.seen = getattr(self, "seen", {})
        with torch.no_grad():
            self.seen[round(self.state.epoch)] = self.model.eval()(**self.probe_inputs).logits
        return {"eval_good": -abs(self.state.epoch - self.best_epoch)}


def trained(folder, plan, epochs, *, resume=None, **arguments):
    integration = pytest.importorskip("esper.integrations.transformers")
    torch.manual_seed(1)
    model, inputs, slots, labels = bert()
    data = [{"input_ids": x, "labels": y} for x, y in zip(inputs["input_ids"], labels, strict=True)]
    growing = integration.GrowthCallback(
        lambda model: (model.eval()(**inputs, labels=labels).loss, 0.5),
        slots=slots,
        example_input=inputs,
        policy=lambda run: plan[run.decision],
        horizon=9,
        contributions=False,
    )
    arguments = {"save_strategy": "epoch", "learning_rate": 0.05, "save_only_model": False} | arguments
    settings = transformers.TrainingArguments(
        str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=3,
        lr_scheduler_type="constant",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **arguments,
    )
    trainer = Best(model, settings, train_dataset=data, eval_dataset=data, callbacks=[growing])
    trainer.probe_inputs = inputs
    trainer.train(resume_from_checkpoint=resume)
    return trainer, growing.growth, inputs


def test_the_best_model_comes_back_with_the_seeds_that_it_had(tmp_path, caplog):
    """At the best epoch an mlp was blended in; at the end a larger one, of the same names, is in its place."""
    plan = [germinate("mlp"), advance(), prune(), Decision(), Decision(), germinate("mlp_large"), *[Decision()] * 9]
    trainer, growth, inputs = trained(
        tmp_path, plan, 6, load_best_model_at_end=True, metric_for_best_model="good", eval_strategy="epoch"
    )
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")
    assert [slot.blueprint for slot in growth.network.slots] == ["mlp", None]
    assert growth.network.slots[0].alpha == 1
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(**inputs).logits, trainer.seen[2])
        assert torch.equal(growth.grown_model().eval()(**inputs).logits, trainer.seen[2])
    assert "keys in the checkpoint" not in caplog.text
    assert len(growth.history) == 6
    assert growth.history[-1].decided.startswith("GERMINATE mlp_large")


@pytest.mark.parametrize("saving", ["epoch", "steps"])
def test_the_trainer_resumes_bit_for_bit_with_the_seeds(saving, tmp_path):
    """Saving at steps writes the folder before the step of growth at the end of the same epoch."""
    often = {"save_strategy": saving, "save_steps": 4 if saving == "steps" else 500}
    plan = [germinate("mlp"), advance(tempo="fast"), *[Decision()] * 9]
    straight, grown, _ = trained(tmp_path / "straight", plan, 4, **often)
    trained(tmp_path / "stopped", plan, 2, **often)
    folder = str(tmp_path / "stopped" / "checkpoint-4")
    resumed, again, _ = trained(tmp_path / "stopped", plan, 4, resume=folder, **often)
    assert [step.loss for step in again.history] == [step.loss for step in grown.history]
    assert [step.decided for step in again.history] == [step.decided for step in grown.history]
    ours, theirs = resumed.model.state_dict(), straight.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_resume_without_the_growths_state_is_refused(tmp_path):
    plan = [germinate("mlp"), *[Decision()] * 9]
    trained(tmp_path, plan, 1)
    folder = tmp_path / "checkpoint-2"
    (folder / "esper_growth.pt").unlink()
    with pytest.raises(ValueError, match=r"no 'esper_growth\.pt'.*resume_from_checkpoint"):
        trained(tmp_path, plan, 2, resume=str(folder))


@pytest.mark.parametrize("arguments", [{"bf16": True}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.01}])
def test_seeds_learn_under_the_trainers_precision_accumulation_and_clipping(arguments, tmp_path):
    """In float32, and as many entries of them as of the host."""
    plan = [germinate("mlp"), *[Decision()] * 9]
    _, growth, _ = trained(tmp_path, plan, 6, save_strategy="no", **arguments)
    seed = growth.network.slots[0].seed
    assert {p.dtype for p in seed.parameters()} == {torch.float32}
    born = copy_of_birth(growth, seed)
    moved = [float((a != b).float().mean()) for a, b in zip(seed.parameters(), born.parameters(), strict=True)]
    assert min(moved) > 0.9, moved


def copy_of_birth(growth, seed):
    """The seed as it was planted."""
    slot = growth.network.slots[0]
    return plant("mlp", slot.spec, "add", entropy=(0, 0, 0), device=slot.device, dtype=torch.float32)
