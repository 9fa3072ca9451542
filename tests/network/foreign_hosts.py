"""Small models as people bring them: from ``torch.nn`` and transformers, with random weights, built in seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from esper.network.blueprints import SlotSpec

VOCABULARY = 32
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@dataclass
class Foreign:
    """A model, its slots with what they carry, and an example of two samples."""

    model: nn.Module
    slots: dict[str, SlotSpec]
    example: Any
    samples_dim: int = 0

    def call(self, example: Any) -> Tensor:
        """The first floating tensor with dimensions that the model puts out."""
        output = self.model(**example) if isinstance(example, dict) else self.model(*_as_tuple(example))
        members = [output] if isinstance(output, Tensor) else list(output.values())
        return next(m for m in members if isinstance(m, Tensor) and m.is_floating_point() and m.dim())


def _as_tuple(example: Any) -> tuple[Any, ...]:
    return example if isinstance(example, tuple) else (example,)


def sequence(channels: int, length: int, causal: bool = False) -> SlotSpec:
    return SlotSpec("sequence", channels, (length,), causal)


def tokens(length: int = 7) -> Tensor:
    return torch.randint(2, VOCABULARY, (2, length))


# ------------------------------------------------------------------------------------------- torch.nn


class Recurrent(nn.Module):
    """Features → Linear → an RNN → Linear at every position, or at the last one only."""

    def __init__(
        self, cell: Callable[..., nn.Module], batch_first: bool, only_last: bool = False, **kwargs: Any
    ) -> None:
        super().__init__()
        self.batch_first, self.only_last = batch_first, only_last
        self.inner = nn.Linear(3, 8)
        self.rnn = cell(8, 8, batch_first=batch_first, **kwargs)
        self.head = nn.Linear(16 if kwargs.get("bidirectional") else 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(self.inner(x))[0]
        if self.only_last:
            h = h[:, -1] if self.batch_first else h[-1]
        return self.head(h)


def recurrent(cell: Callable[..., nn.Module], batch_first: bool, only_last: bool = False, **kwargs: Any) -> Foreign:
    x = torch.randn(2, 7, 3) if batch_first else torch.randn(7, 2, 3)
    causal = not kwargs.get("bidirectional")
    slots = {"inner": sequence(8, 7, causal), "rnn": sequence(8 if causal else 16, 7, causal)}
    return Foreign(Recurrent(cell, batch_first, only_last, **kwargs), slots, x, 0 if batch_first else 1)


def encoder(batch_first: bool) -> Foreign:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    slots = {"layers.0": sequence(8, 7), "layers.1.linear1": sequence(16, 7)}
    return Foreign(model, slots, torch.randn(2, 7, 8) if batch_first else torch.randn(7, 2, 8), 0 if batch_first else 1)


def encoder_decoder(batch_first: bool) -> Foreign:
    with warnings.catch_warnings(action="ignore"):  # it would like the samples first
        model = nn.Transformer(8, 2, 2, 2, 16, batch_first=batch_first)
    src, tgt = torch.randn(2, 7, 8), torch.randn(2, 5, 8)
    example = {"src": src, "tgt": tgt, "tgt_mask": nn.Transformer.generate_square_subsequent_mask(5)}
    if not batch_first:
        example |= {"src": src.transpose(0, 1), "tgt": tgt.transpose(0, 1)}
    slots = {"encoder.layers.0": sequence(8, 7), "decoder.layers.1": sequence(8, 5, True)}
    return Foreign(model, slots, example, 0 if batch_first else 1)


class TransposedInside(nn.Module):
    """Tokens ``[N, L]`` come in, but the recurrent part runs on ``[L, N, C]``, and positions come out in one row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.rnn = nn.GRU(8, 8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rnn(self.embed(x).transpose(0, 1).contiguous())[0]
        rows = h.view(-1, 8)  # in place nowhere: a seed must leave the layout of the memory as it is
        return self.head(rows).view(h.shape[0], h.shape[1], -1).transpose(0, 1).flatten(0, 1)


class PatchDecoder(nn.Module):
    """Predicts the next patch of an image: causal, though its input is no sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 48)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2)
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1])
        return self.head(self.layer(h, src_mask=mask, is_causal=True))


# ------------------------------------------------------------------------------------------- transformers


def gpt2(**example: Any) -> Foreign:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        loss_type="ForCausalLMLoss",
    )  # fmt: skip
    slots = {name: sequence(16, 7, True) for name in ("transformer.wte", "transformer.h.0", "transformer.h.1.mlp")}
    return Foreign(hf.GPT2LMHeadModel(config), slots, {"input_ids": tokens()} | example)


def llama() -> Foreign:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, vocab_size=VOCABULARY))
    return Foreign(model, {"model.layers.0": sequence(16, 7, True)}, {"input_ids": tokens()})


def mamba() -> Foreign:
    config = hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2, expand=2)
    return Foreign(hf.MambaForCausalLM(config), {"backbone.layers.0": sequence(16, 7, True)}, {"input_ids": tokens()})


def bert() -> Foreign:
    config = hf.BertConfig(**SMALL, vocab_size=VOCABULARY, max_position_embeddings=16)
    slots = {"bert.embeddings": sequence(16, 7), "bert.encoder.layer.1": sequence(16, 7)}
    return Foreign(hf.BertForMaskedLM(config), slots, {"input_ids": tokens()})


def t5(target: str, length: int) -> Foreign:
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    slots = {"encoder.block.0": sequence(16, 7), "decoder.block.1": sequence(16, length, True)}
    return Foreign(hf.T5ForConditionalGeneration(config), slots, {"input_ids": tokens(), target: tokens(length)})


def bart(**example: Any) -> Foreign:
    config = hf.BartConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=16,
    )  # fmt: skip
    length = example["labels"].shape[1] if example else 7
    slots = {"model.encoder.layers.1": sequence(16, 7), "model.decoder.layers.1": sequence(16, length, True)}
    return Foreign(hf.BartForConditionalGeneration(config), slots, {"input_ids": tokens()} | example)


def vit() -> Foreign:
    config = hf.ViTConfig(**SMALL, image_size=16, patch_size=4, num_channels=3, num_labels=3)
    slots = {"vit.embeddings": sequence(16, 17), "vit.layernorm": sequence(16, 17)}
    return Foreign(hf.ViTForImageClassification(config), slots, {"pixel_values": torch.randn(2, 3, 16, 16)})


def convnext(stages: int = 2) -> Foreign:
    """As many channels as columns, so that sizes do not tell the layout."""
    config = hf.ConvNextV2Config(
        num_channels=3, hidden_sizes=[16, 32][:stages], depths=[1, 1][:stages], num_stages=stages, patch_size=2,
        num_labels=3,
    )  # fmt: skip
    block = "convnextv2.encoder.stages.0"
    names = ["convnextv2.embeddings", block, f"{block}.layers.0.dwconv", f"{block}.layers.0.pwconv2"]
    slots = {name: SlotSpec("image", 16, (16, 16)) for name in names}
    return Foreign(hf.ConvNextV2ForImageClassification(config), slots, {"pixel_values": torch.randn(2, 3, 32, 32)})


HOSTS: dict[str, Callable[[], Foreign]] = {
    "lstm": lambda: recurrent(nn.LSTM, batch_first=True),
    "lstm, positions first": lambda: recurrent(nn.LSTM, batch_first=False),
    "lstm, both ways, positions first": lambda: recurrent(nn.LSTM, batch_first=False, bidirectional=True),
    "gru, last position": lambda: recurrent(nn.GRU, batch_first=False, only_last=True),
    "encoder": lambda: encoder(batch_first=True),
    "encoder, positions first": lambda: encoder(batch_first=False),
    "encoder and decoder": lambda: encoder_decoder(batch_first=True),
    "encoder and decoder, positions first": lambda: encoder_decoder(batch_first=False),
    "transposed inside": lambda: Foreign(
        TransposedInside(), {"embed": sequence(8, 7, True), "rnn": sequence(8, 7, True)}, tokens()
    ),
    "patch decoder": lambda: Foreign(PatchDecoder(), {"layer": sequence(8, 16, True)}, torch.randn(2, 3, 16, 16)),
    "gpt2": gpt2,
    "gpt2, last logits": lambda: gpt2(logits_to_keep=1),
    "gpt2, labels": lambda: gpt2(labels=tokens()),
    "llama": llama,
    "mamba": mamba,
    "bert": bert,
    "t5, labels": lambda: t5("labels", 5),
    "t5, as long as its input": lambda: t5("decoder_input_ids", 7),
    "bart, labels": lambda: bart(labels=tokens(5)),
    "bart, input alone": bart,
    "vit": vit,
    "convnext": convnext,
}
