"""Names, ports, layouts and causality: what one example forward finds out."""

from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, ResNetConfig, ResNetForImageClassification, ViTConfig
from transformers import ViTForImageClassification as ViT
from transformers.modeling_outputs import BaseModelOutput

from esper.actions import BLUEPRINT_NAMES
from esper.network.blueprints import SlotSpec
from esper.network.growing_network import GrowingNetwork
from esper.network.slot import Slot
from esper.network.survey import Port, resolve_slots
from network.foreign_hosts import HOSTS, Foreign
from network.hosts import CharLM, PerPosition, SmallCNN, advance, germinate, grow, host_case, mlp, wake


def slots_of(model: nn.Module, names: list[str], x: Any, **kwargs: Any) -> tuple[Slot, ...]:
    return GrowingNetwork(model, names, x, **kwargs).slots


class Body(nn.Module):
    """A submodule whose output is whatever ``make`` makes of its input."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


class Around(nn.Module):
    """A model around a ``body`` with any output; what comes out of it is kept."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body = Body(make)
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.body(x)
        return x.mean((1, 2)[: x.dim() - 1])


# ------------------------------------------------------------------------------------------- names


def test_wildcards_stand_for_one_part_of_a_path() -> None:
    model = nn.ModuleDict({"layer1": mlp(), "layer2": mlp(), "head": nn.Linear(3, 3)})
    assert resolve_slots(model, ["layer*"]) == ["layer1", "layer2"]
    assert resolve_slots(model, ["layer?.1"]) == ["layer1.1", "layer2.1"]
    assert resolve_slots(model, ["layer2.3", "*.[13]"]) == ["layer2.3", "layer1.1", "layer1.3", "layer2.1"]


def test_an_unknown_name_comes_with_the_nearest_ones() -> None:
    with pytest.raises(ValueError, match=r"slot 'blok' is not a submodule of SmallCNN; did you mean 'block'"):
        resolve_slots(SmallCNN(), ["conv1", "blok"])
    with pytest.raises(ValueError, match="it has conv1, bn, block"):
        resolve_slots(SmallCNN(), ["zzzzzz"])
    with pytest.raises(ValueError, match="expected a list of slot names, got the string 'block'"):
        resolve_slots(SmallCNN(), "block")
    with pytest.raises(ValueError, match="at least one slot name"):
        resolve_slots(SmallCNN(), [])


def test_slots_keep_the_order_of_the_user_and_know_the_order_of_execution() -> None:
    slots = slots_of(mlp(), ["3", "0", "1"], torch.randn(2, 4))
    assert [s.name for s in slots] == ["3", "0", "1"]
    assert [s.depth for s in slots] == [1.0, 0.0, 0.5]


# ------------------------------------------------------------------------------------------- kinds and layouts


def test_kinds_are_read_from_the_example() -> None:
    assert slots_of(mlp(), ["1"], torch.randn(2, 4))[0].spec == SlotSpec("vector", 8)
    assert slots_of(PerPosition(), ["first"], torch.randn(2, 6, 1))[0].spec == SlotSpec("sequence", 8, (6,))
    assert slots_of(SmallCNN(), ["block"], torch.randn(2, 1, 5, 4))[0].spec == SlotSpec("image", 8, (5, 4))


def test_sequences_with_channels_first_are_recognised() -> None:
    model = nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3))
    x = torch.randn(4, 2, 10)
    network = GrowingNetwork(model, ["0", "1"], x)
    for slot in network.slots:
        assert slot.spec == SlotSpec("sequence", 8, (10,))
        assert slot.output == "output with its channels moved"
    for decision in (germinate("conv", 1), advance(1)):
        network.step(decision)
    wake(network.slots[1].seed)
    h = torch.relu(model[0](x))
    expected = network.slots[1].seed.blend(h.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(model[:2](x), expected)
    with network.measure():
        model(x).sum().backward()
    assert all(r.slot_gradient_rms is not None and r.slot_gradient_rms > 0 for r in network.slot_readings())


def test_a_transposition_after_a_convolution_is_seen_through() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 8, 3, padding=1)
            self.linear = nn.Linear(8, 6)
            self.pool = nn.AdaptiveAvgPool1d(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.linear(self.conv(x).transpose(1, 2)))

    slots = slots_of(Mixed(), ["conv", "linear"], torch.randn(2, 1, 10))
    assert [s.spec for s in slots] == [SlotSpec("sequence", 8, (10,)), SlotSpec("sequence", 6, (10,))]


def test_images_with_channels_last_are_recognised() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.LayerNorm(8))
    network = GrowingNetwork(model, ["1"], torch.randn(2, 5, 4, 3))
    assert network.slots[0].spec == SlotSpec("image", 8, (5, 4))
    network.step(germinate("conv"))
    network.step(advance())
    assert model(torch.randn(2, 5, 4, 3)).shape == (2, 5, 4, 8)


# ------------------------------------------------------------------------------------------- tensors in outputs


@dataclass
class Result:
    count: int
    hidden: Tensor
    extra: Tensor


Pair = namedtuple("Pair", ["hidden", "weights"])

CONTAINERS = {
    "tensor": (lambda x: x * 2, "output"),
    "tuple": (lambda x: (None, x * 2, x.sum()), "output[1]"),
    "list": (lambda x: [x * 2, x.argmax(-1)], "output[0]"),
    "namedtuple": (lambda x: Pair(x * 2, x @ x.transpose(1, 2)), "output[0]"),
    "mapping": (lambda x: {"mask": x > 0, "hidden": x * 2}, "output.hidden"),
    "dataclass": (lambda x: Result(1, x * 2, x.mean(-1)), "output.hidden"),
    "model output": (
        lambda x: BaseModelOutput(last_hidden_state=x * 2, hidden_states=(x, x)),
        "output.last_hidden_state",
    ),
}


def hidden_of(output: Any) -> Tensor:
    if isinstance(output, tuple | list):
        return next(m for m in output if isinstance(m, Tensor) and m.shape == (2, 6, 8))
    if isinstance(output, dict) and "hidden" in output:
        return output["hidden"]
    for name in ("hidden", "last_hidden_state"):
        if hasattr(output, name):
            return getattr(output, name)
    return output


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_slot_is_the_tensor_inside_an_output_and_the_rest_is_left_alone(container: str) -> None:
    make, where = CONTAINERS[container]
    model, x = Around(make), torch.randn(2, 6, 8)
    network = GrowingNetwork(model, ["body"], x)
    slot = network.slots[0]
    assert slot.spec == SlotSpec("sequence", 8, (6,))
    assert slot.output == where
    network.step(germinate("mlp"))
    network.step(advance())
    wake(slot.seed)
    model(x)
    plain = make(x)
    assert type(model.last) is type(plain)
    torch.testing.assert_close(hidden_of(model.last), slot.seed.blend(x * 2))
    if container == "tuple":
        assert model.last[0] is None
        assert torch.equal(model.last[2], x.sum())
    if container == "model output":
        assert torch.equal(model.last.hidden_states[0], x)
        assert model.last[0] is model.last.last_hidden_state, "by index and by name it is the new tensor"


def test_ports_do_not_alter_the_output_they_are_given() -> None:
    tensor, other = torch.randn(2, 3), torch.randn(2, 3)
    for output, key in (({"a": tensor}, "a"), ([tensor], 0), (Result(1, tensor, tensor), "hidden")):
        changed = Port(key).write(output, other)
        assert Port(key).read(output) is tensor
        assert Port(key).read(changed) is other


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.argmax(-1), "must output a floating tensor .* got a tensor \\(2, 6\\) of torch.int64"),
        (lambda x: x.sum(), "must output a floating tensor"),
        (lambda x: None, "got NoneType"),
        (lambda x: ((x, x),), "got tuple with \\[\\(0, 'tuple'\\)\\]"),
        (lambda x: (x, x + 1), "several tensors of shape \\(2, 6, 8\\) \\(at 0 and \\[1\\]\\)"),
        (lambda x: x[:0], "empty tensor"),
    ],
)
def test_an_output_without_a_single_tensor_is_refused(make: Callable[[Tensor], Any], message: str) -> None:
    model = Around(make)
    with pytest.raises(ValueError, match=message):
        GrowingNetwork(model, ["body"], torch.randn(2, 6, 8))
    assert not model.body._forward_hooks


def test_a_submodule_that_does_not_run_or_runs_twice_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.twice = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(self.blocks[0](x)))

    model, x = Odd(), torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"slot\(s\) \['blocks', 'blocks.1'\] did not run"):
        GrowingNetwork(model, ["blocks", "blocks.0", "blocks.1"], x)
    with pytest.raises(ValueError, match="slot 'twice' runs more than once"):
        GrowingNetwork(model, ["twice"], x)
    assert all(not m._forward_hooks for m in model.modules())


def test_tuples_and_mappings_as_example_become_arguments() -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Identity()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.body(a + b)

    a, b = torch.randn(2, 2, 4)
    assert slots_of(TwoInputs(), ["body"], (a, b))[0].spec == SlotSpec("vector", 4)
    assert slots_of(TwoInputs(), ["body"], {"a": a, "b": b})[0].spec == SlotSpec("vector", 4)


# ------------------------------------------------------------------------------------------- causality


class Attentive(nn.Module):
    """A one-layer language model with attention, causal or not."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.embed = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11)
        self.drop = nn.Dropout(0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)[:, None]
        h = F.scaled_dot_product_attention(h, h, h, is_causal=self.causal)[:, 0]
        return self.head(self.drop(h))


def test_causality_is_found_out() -> None:
    tokens = torch.randint(0, 11, (3, 6))
    assert slots_of(CharLM(), ["embed", "mix"], tokens)[0].spec.causal
    assert slots_of(Attentive(True), ["drop"], tokens)[0].spec.causal
    assert not slots_of(Attentive(False), ["drop"], tokens)[0].spec.causal
    assert not slots_of(PerPosition(), ["first"], torch.randn(2, 6, 1))[0].spec.causal
    assert slots_of(Attentive(True), ["drop"], torch.zeros(1, 6, dtype=torch.int64))[0].spec.causal


def test_causality_can_be_said() -> None:
    tokens = torch.randint(0, 11, (3, 6))
    assert not slots_of(CharLM(), ["embed"], tokens, causal=False)[0].spec.causal
    network = GrowingNetwork(PerPosition(), ["first"], torch.randn(2, 6, 1), causal=True)
    assert network.slots[0].spec.causal
    assert not network.masks()["blueprint"][0, BLUEPRINT_NAMES.index("squeeze_excite")]


def test_a_grown_causal_model_stays_causal() -> None:
    model, tokens = CharLM(), torch.randint(0, 11, (3, 6))
    network = GrowingNetwork(model, ["embed", "mix"], tokens)
    for decision in (germinate("attention", 0), germinate("conv_large", 1), advance(0), advance(1)):
        network.step(decision)
    for slot in network.slots:
        wake(slot.seed)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 11
    torch.testing.assert_close(model(changed)[:, :-1], model(tokens)[:, :-1])


def test_what_cannot_be_told_is_asked() -> None:
    by_itself = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11), nn.Flatten(0, 1))
    tokens = torch.randint(0, 11, (3, 6))
    with pytest.raises(
        ValueError, match=r"cannot tell whether slot '0' may look ahead: the model treats every position"
    ):
        slots_of(by_itself, ["0"], tokens)
    with pytest.raises(ValueError, match=r"has no two positions to disturb. Say causal=True if .* causal=False if"):
        slots_of(CharLM(), ["embed"], tokens[:, :1])
    assert slots_of(copy.deepcopy(by_itself), ["0"], tokens, causal=True)[0].spec.causal
    assert not slots_of(by_itself, ["0"], tokens, causal=False)[0].spec.causal


def test_a_model_that_looks_ahead_in_its_prefix_only_is_asked_about() -> None:
    class PrefixLM(Attentive):
        def forward(self, tokens: Tensor) -> Tensor:
            h = self.drop(self.embed(tokens))[:, None]
            sees = torch.ones(6, 6).tril().bool()
            sees[:4, :4] = True
            return self.head(F.scaled_dot_product_attention(h, h, h, attn_mask=sees)[:, 0])

    with pytest.raises(ValueError, match="some of its positions see later ones of the input and others do not"):
        slots_of(PrefixLM(False), ["drop"], torch.randint(0, 11, (3, 6)))


# ------------------------------------------------------------------------------------------- models of others


def replaced(example: Any, name: str, tensor: Tensor) -> Any:
    return example | {name: tensor} if isinstance(example, dict) else tensor


def main_inputs(host: Foreign) -> dict[str, Tensor]:
    """The inputs that carry positions, by name."""
    if isinstance(host.example, Tensor):
        return {"": host.example}
    return {n: t for n, t in host.example.items() if isinstance(t, Tensor) and "mask" not in n}


def other(tensor: Tensor) -> Tensor:
    return 31 - tensor if not tensor.is_floating_point() else tensor + 1


@pytest.mark.parametrize("name", HOSTS)
def test_what_slots_carry_in_models_that_others_wrote(name: str) -> None:
    host = HOSTS[name]()
    slots = slots_of(host.model, list(host.slots), host.example)
    assert {slot.name: slot.spec for slot in slots} == host.slots


@pytest.mark.parametrize("name", HOSTS)
def test_seeds_mix_no_samples_and_leak_no_later_positions(name: str) -> None:
    """Attention, where it fits, sees all that a seed may see."""
    host = HOSTS[name]()
    network = GrowingNetwork(host.model, list(host.slots), host.example)
    fits = network.masks()["blueprint"][:, BLUEPRINT_NAMES.index("attention")]
    for slot in range(network.num_slots):
        network.step(germinate("attention" if fits[slot] else "conv", slot))
        network.step(advance(slot))
        wake(network.slots[slot].seed)
    seen: dict[str, Tensor] = {}

    def keep(slot: Slot) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[slot.name] = slot.port.read(output).clone()

        return hook

    for slot in network.slots:
        slot.module.register_forward_hook(keep(slot))

    def slots_on(example: Any) -> dict[str, Tensor]:
        seen.clear()
        with torch.no_grad():
            host.call(example)
        return dict(seen)

    host.model.eval()
    before = slots_on(host.example)
    for input_name, tensor in main_inputs(host).items():
        second = tensor.clone()
        second.select(host.samples_dim, 1).copy_(other(tensor).select(host.samples_dim, 1))
        after = slots_on(replaced(host.example, input_name, second))
        for slot in before:
            torch.testing.assert_close(after[slot][0], before[slot][0])
    stream = list(main_inputs(host))[-1]
    tensor = main_inputs(host)[stream]
    last = tensor.clone()
    part = (
        (slice(None),) * (1 - host.samples_dim) + (-1,) if tensor.dim() < 4 else (..., slice(-4, None), slice(-4, None))
    )
    last[part] = other(tensor)[part]
    after = slots_on(replaced(host.example, stream, last))
    for slot, spec in host.slots.items():
        if spec.causal and name != "bart, input alone":  # its encoder sees that input too
            torch.testing.assert_close(after[slot][:, :-1], before[slot][:, :-1])


def test_one_sample_is_doubled_and_a_model_that_takes_one_only_is_named() -> None:
    class OneOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.view(1, 4))

    assert slots_of(Attentive(True), ["drop"], torch.randint(0, 11, (1, 6)))[0].spec == SlotSpec(
        "sequence", 8, (6,), causal=True
    )
    with pytest.raises(
        ValueError, match=r"does not run with two of it .* give an example_input of two samples or more"
    ):
        slots_of(OneOnly(), ["body"], torch.randn(1, 4))
    with pytest.raises(RuntimeError, match="invalid for input of size 8"):
        slots_of(OneOnly(), ["body"], torch.randn(2, 4))


def test_a_mask_that_all_samples_share_may_come_first() -> None:
    class MaskFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
            return self.body(x, src_mask=hidden)

    example = (torch.ones(6, 6).triu(1).bool(), torch.randn(3, 6, 8))
    assert slots_of(MaskFirst(), ["body"], example)[0].spec == SlotSpec("sequence", 8, (6,), causal=True)


def test_a_slot_whose_samples_depend_on_each_other_is_refused() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.before(x)[0]
            return self.after(torch.tanh(h - h.mean(0))).mean(1)

    x = torch.randn(4, 6, 3)
    assert slots_of(Centred(), ["before"], x)[0].spec == SlotSpec("sequence", 8, (6,), causal=True)
    with pytest.raises(ValueError, match=r"slot 'after' outputs a tensor .* samples of a batch depend on each other"):
        slots_of(Centred(), ["after"], x)


def test_a_slot_that_is_the_same_for_all_samples_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"the same tensor .* whatever the samples are"):
        slots_of(model, ["0.parametrizations.weight"], torch.randn(8, 4))


def test_a_block_that_puts_out_zeros_still_has_samples() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    assert slots_of(model, ["1"], torch.randn(5, 3))[0].spec == SlotSpec("vector", 8)


def test_a_slot_under_no_grad_is_refused() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.body(x)
            return self.head(h)

    with pytest.raises(ValueError, match=r"slot 'body.1' runs without gradients .* could never learn"):
        slots_of(Frozen(), ["body.1"], torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_blocks_and_complex_weights_are_refused() -> None:
    scripted = nn.Sequential(
        nn.Linear(4, 8), torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU())), nn.Linear(8, 3)
    )
    with pytest.raises(ValueError, match=r"1 is scripted or traced \(torch.jit\)"):
        slots_of(scripted, ["0"], torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"the parameter 0.weight is complex"):
        slots_of(nn.Sequential(nn.Linear(4, 8, dtype=torch.complex64)), ["0"], torch.randn(2, 4))


def test_channels_that_cannot_be_told_from_positions_are_asked_about() -> None:
    class Patches(nn.Module):
        """Eight patches of eight channels, always; permuted after the last layer."""

        def __init__(self) -> None:
            super().__init__()
            self.body = Body(lambda x: self.linear(x).transpose(1, 2))
            self.linear = nn.Linear(8, 8)
            self.head = nn.Linear(64, 3)
            self.position = nn.Parameter(torch.zeros(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x + self.position).flatten(1))

    with pytest.raises(ValueError, match=r"it cannot be told which of the dimensions \[1, 2\] holds the channels"):
        slots_of(Patches(), ["body"], torch.randn(2, 8, 8))


# ------------------------------------------------------------------------------------------- transformers


def test_gpt2() -> None:
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    example = {"input_ids": torch.randint(0, 20, (2, 7))}
    network = GrowingNetwork(model, ["transformer.h.*", "transformer.h.*.attn"], example)
    assert [s.name for s in network.slots] == [
        "transformer.h.0",
        "transformer.h.1",
        "transformer.h.0.attn",
        "transformer.h.1.attn",
    ]
    assert all(s.spec == SlotSpec("sequence", 8, (7,), causal=True) for s in network.slots)
    assert network.slots[2].output == "output[0]"
    _grow_and_train(network, example)


def test_vit() -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=1,
    )  # fmt: skip
    example = {"pixel_values": torch.randn(2, 1, 8, 8)}
    network = GrowingNetwork(ViT(config), ["vit.embeddings", "vit.layernorm"], example)
    assert [s.spec for s in network.slots] == [SlotSpec("sequence", 8, (5,))] * 2
    _grow_and_train(network, example)


def test_resnet() -> None:
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    example = {"pixel_values": torch.randn(2, 1, 32, 32)}
    network = GrowingNetwork(
        ResNetForImageClassification(config), ["resnet.embedder", "resnet.encoder.stages.*", "resnet.encoder"], example
    )
    assert [s.spec.channels for s in network.slots] == [8, 8, 16, 16]
    assert {s.spec.kind for s in network.slots} == {"image"}
    assert network.slots[3].output == "output.last_hidden_state"
    _grow_and_train(network, example)


def _grow_and_train(network: GrowingNetwork, example: dict[str, Tensor]) -> None:
    model = network.model.train()
    before = model(**example).logits
    for slot in range(network.num_slots):
        network.step(germinate("bottleneck", slot))
        wake(network.slots[slot].seed)
        model.eval()(**example)
        network.step(advance(slot))
    model.train()
    after = model(**example).logits
    assert not torch.allclose(after, before)
    after.sum().backward()
    assert all(p.grad is not None for p in network.seed_parameters())


@pytest.mark.parametrize("kind", ["vector", "sequence", "causal", "image"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_flops_of_the_host_are_those_of_one_sample(kind, batch):
    case = host_case(kind, batch=batch)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(case.model).eval()(case.x)
    assert grow(case).host_flops == counter.get_total_flops() / batch > 0
