"""Padding, caches and fused paths: what a host's call says about the positions in its slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.network.blueprints import BLUEPRINTS
from esper.network.growing_network import GrowingNetwork
from esper.network.host_call import Padding
from network.foreign_hosts import Foreign, bert, gpt2, llama, mamba, t5, tokens
from network.hosts import advance, germinate, wake

MIXING = [name for name, blueprint in BLUEPRINTS.items() if blueprint.mixes]


def grown(host: Foreign, slot: str, blueprint: str) -> GrowingNetwork:
    """A seed that does something, blended in."""
    network = GrowingNetwork(host.model, [slot], host.example)
    network.step(germinate(blueprint))
    network.step(advance())
    wake(network.slots[0].seed)
    host.model.eval()
    return network


class Encoder(nn.Module):
    """Embedding, two layers of ``torch.nn`` with their mask, and the mean over what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        h = self.encoder(self.embed(x), src_key_padding_mask=pad_mask)
        if pad_mask is not None:
            keep = ~pad_mask[..., None]
            return self.head((h * keep).sum(1) / keep.sum(1))
        return self.head(h.mean(1))


def masked_encoder() -> Foreign:
    pads = torch.zeros(2, 7, dtype=torch.bool)
    pads[1, 5:] = True
    return Foreign(Encoder(), {}, (tokens(), pads))


# ------------------------------------------------------------------------------------------- padding


def test_the_mask_and_what_it_means_are_found() -> None:
    ones = torch.ones(2, 7, dtype=torch.int64)

    def padding(host: Foreign, slot: str, **more: Any) -> Padding | None:
        example = host.example | more if isinstance(host.example, dict) else host.example
        return GrowingNetwork(host.model, [slot], example).slots[0].padding

    assert padding(bert(), "bert.embeddings", attention_mask=ones) == Padding("attention_mask", False)
    assert padding(gpt2(), "transformer.h.1", attention_mask=ones) == Padding("attention_mask", False)
    assert padding(masked_encoder(), "encoder.layers.0") == Padding("pad_mask", True)
    assert padding(masked_encoder(), "embed") == Padding("pad_mask", True)
    assert padding(bert(), "bert.embeddings") is None
    assert padding(t5("labels", 7), "encoder.block.0", attention_mask=ones) == Padding("attention_mask", False)
    assert padding(t5("labels", 7), "decoder.block.0", attention_mask=ones) is None, "it is the encoder's"


@pytest.mark.parametrize("pads", [slice(5, None), slice(2), slice(7)], ids=["behind", "in front", "everywhere"])
def test_padding_in_the_example_hides_nothing(pads: slice) -> None:
    """Positions that are masked are seen by nobody, so they say nothing about who may see whom."""
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[:, pads] = 0
    for host, slot, causal in ((bert(), "bert.encoder.layer.0", False), (llama(), "model.layers.0", True)):
        (found,) = GrowingNetwork(host.model, [slot], host.example | {"attention_mask": mask}).slots
        assert found.spec.causal is causal
        assert found.padding == Padding("attention_mask", False)


@pytest.mark.parametrize("blueprint", MIXING)
def test_seeds_do_not_see_padding(blueprint: str) -> None:
    """A sample says the same alone and padded to another length, whatever stands in the padding."""
    host = bert()
    host.example |= {"attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    network = grown(host, "bert.encoder.layer.0", blueprint)
    sample, padded = tokens()[:1], tokens()
    padded[:, :5] = sample[:, :5]
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]] * 2)
    for model in (network.model, network.grown_model()):
        with torch.no_grad():
            alone = model(input_ids=sample[:, :5], attention_mask=mask[:1, :5]).logits
            among = model(input_ids=padded, attention_mask=mask).logits
        torch.testing.assert_close(among[:, :5], alone.expand(2, -1, -1))
        assert model(input_ids=padded).logits.isfinite().all(), "a call without the mask has no padding"


@pytest.mark.parametrize("blueprint", ["attention", "dilated"])
def test_padding_in_front_of_a_causal_stream_is_not_seen(blueprint: str) -> None:
    host = llama()
    host.example |= {"attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    model = grown(host, "model.layers.0", blueprint).model
    sample, padded = tokens()[:1], tokens()
    padded[:, 2:] = sample[:, :5]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]] * 2)
    with torch.no_grad():
        alone = model(input_ids=sample[:, :5]).logits
        among = model(input_ids=padded, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    assert among.isfinite().all()
    torch.testing.assert_close(among[:, 2:], alone.expand(2, -1, -1))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_activation_checkpointing_runs_seeds_again_as_they_ran() -> None:
    """What is inside a layer runs a second time in the backward pass, after the call with its mask has ended."""
    host = bert()
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]] * 2)
    host.example |= {"attention_mask": mask}
    network = grown(host, "bert.encoder.layer.0.output", "attention")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            host.model.gradient_checkpointing_enable({"use_reentrant": False})
        host.model.train().zero_grad()
        torch.manual_seed(7)  # for dropout
        host.model(**host.example).logits[mask.bool()].square().sum().backward()
        gradients.append([p.grad.clone() for p in host.model.parameters() if p.grad is not None])
    assert network.slots[0].seed_params > 0
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


# ------------------------------------------------------------------------------------------- how often


def test_a_slot_that_runs_more_often_than_in_the_example_is_noticed() -> None:
    class Deep(nn.Module):
        """As deep as it is told to be."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, depth: int = 1) -> Tensor:
            for _ in range(depth):
                x = torch.relu(self.layer(x))
            return self.head(x)

    model, x = Deep(), torch.randn(2, 8)
    network = GrowingNetwork(model, ["layer"], x)
    with network.measure():
        for _ in range(2):
            model(x).sum().backward()
        model.layer(model.layer(x))
        with pytest.raises(ValueError, match=r"slot 'layer' ran once in the example, but runs more than"):
            model(x, depth=2)
        model(x)
    assert not model._forward_hooks


# ------------------------------------------------------------------------------------------- caches


@pytest.mark.parametrize("host", [gpt2, llama, mamba])
def test_generation_with_a_cache_is_refused_where_seeds_mix_positions(host: Callable[[], Foreign]) -> None:
    made = host()
    network = grown(made, list(made.slots)[-1], "conv")
    prompt = tokens(4)
    for model in (network.model, network.grown_model()):
        with pytest.raises(ValueError, match=r"called with a cache of earlier ones, .* use_cache=False, or let only"):
            generate(model, prompt)
        slow = generate(model, prompt, use_cache=False)
        for end in (4, 5):
            expected = model(input_ids=slow[:, :end]).logits[:, -1].argmax(-1)
            assert torch.equal(slow[:, end], expected)


def test_generation_with_a_cache_goes_on_with_seeds_that_do_not() -> None:
    made = gpt2()
    network = grown(made, "transformer.h.0.attn", "mlp")
    prompt = tokens(4)
    assert torch.equal(generate(network.model, prompt), generate(network.model, prompt, use_cache=False))


def generate(model: Any, prompt: Tensor, **kwargs: Any) -> Tensor:
    ends = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": 99}
    return model.generate(input_ids=prompt, **ends, **kwargs)


def test_the_call_is_forgotten_when_it_ends_and_leaves_nothing_behind() -> None:
    host = bert()
    host.example |= {"attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    network = grown(host, "bert.encoder.layer.0", "conv")
    h = torch.randn(2, 7, 16)
    with torch.no_grad():
        host.model(**host.example)
    assert network.slots[0].call.positions_to_mix(h, network.slots[0].padding) is None
    network.remove()
    assert not host.model._forward_pre_hooks
    assert not host.model._forward_hooks


# ------------------------------------------------------------------------------------------- nested tensors


@contextmanager
def fast_path() -> Iterator[None]:
    """As in evaluation."""
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        yield


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_with_a_mask_keeps_its_positions_in_evaluation() -> None:
    """``nn.TransformerEncoder`` makes nested tensors of a padded batch, in evaluation, which no slot can carry."""
    host = masked_encoder()
    x, pads = host.example
    with fast_path():
        plain = host.model.eval()(x, pads)
    network = GrowingNetwork(host.model, ["encoder.layers.0", "encoder.layers.1.linear2"], host.example)
    for slot in range(2):
        network.step(germinate("mlp", slot))
        network.step(advance(slot))
    with fast_path():
        torch.testing.assert_close(host.model.eval()(x, pads), plain)
        for slot in network.slots:
            wake(slot.seed)
        blended = host.model.eval()(x, pads)
        torch.testing.assert_close(network.grown_model()(x, pads), blended)
    torch.testing.assert_close(host.model.train()(x, pads), blended)
    assert not torch.allclose(blended, plain, rtol=0.01)
    network.remove()
    assert host.model.encoder.use_nested_tensor
