"""How a model reads rows as their owner has them, and answers in the owner's units: dtype, layout, normalisation.

What turns rows into a host's inputs is a module. The same one makes the splits and goes into the exported file, so a
model that is served sees what it has learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


class Arrange(nn.Module):
    """Numbers of any type as floats, and images as ``[N, C, H, W]``.

    Args:
        layout: ``"as they are"``, ``"flat"`` (``[N, ...]`` → ``[N, C]``), ``"grey"`` (``[N, H, W]`` →
            ``[N, 1, H, W]``) or ``"channels last"`` (``[N, H, W, C]`` → ``[N, C, H, W]``).
        dtype: In which normalisation computes: float64 for what float32 does not hold.
    """

    def __init__(self, layout: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout = layout
        self.dtype = dtype

    def forward(self, rows: Tensor) -> Tensor:
        """Rows → vectors ``[N, C]``, sequences ``[N, L, C]`` or images ``[N, C, H, W]``."""
        x = rows.to(self.dtype)
        if self.layout == "grey":
            return x.unsqueeze(1)
        if self.layout == "flat":
            return x.flatten(1)
        return x.permute(0, 3, 1, 2).contiguous() if self.layout == "channels last" else x


class Standardise(nn.Module):
    """Each channel with mean 0 and variance 1 over the training rows, as float32; a constant channel becomes 0.

    Channels are the features of vectors ``[N, C]`` and of sequences ``[N, L, C]``, and the colours of images
    ``[N, C, H, W]``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        axes = [0, 2, 3] if x.ndim == 4 else list(range(x.ndim - 1))
        mean = x.double().mean(axes, keepdim=True)
        std = x.double().std(axes, correction=0, keepdim=True)
        self.register_buffer("mean", mean.to(x.dtype))
        self.register_buffer("std", torch.where(std > 0, std, 1.0).to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs of any scale → standardised float32."""
        return ((x - self.mean) / self.std).float()


class ToFloat32(nn.Module):
    """Inputs as they are, in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Any floats → float32."""
        return x.float()


class ReadTable(nn.Module):
    """Rows of a table, ``[N, columns]``, as features ``[N, F]`` of float64.

    A number that is missing (NaN) becomes the column's mean; a column that lacks some in training has one more feature
    that says where. A category, given as its place in the list of categories, becomes one feature for each.

    Args:
        numbers: Places of the columns of numbers.
        categories: Place of a column of categories → how many there are.
        training: The training rows.
    """

    mean: Tensor
    which: Tensor
    gaps: Tensor

    def __init__(self, numbers: Sequence[int], categories: dict[int, int], training: Tensor) -> None:
        super().__init__()
        self.categories = categories
        self.register_buffer("which", torch.tensor(list(numbers), dtype=torch.int64))
        values = training[:, self.which]
        missing = values.isnan()
        self.register_buffer("gaps", missing.any(0).nonzero().flatten())
        known = (~missing).sum(0).clamp(min=1)
        self.register_buffer("mean", torch.where(missing, 0.0, values).sum(0) / known)

    def forward(self, rows: Tensor) -> Tensor:
        """``[N, columns]`` → ``[N, F]``: numbers, then gaps, then categories."""
        values = rows[:, self.which]
        missing = torch.isnan(values)
        features = [torch.where(missing, self.mean, values), missing[:, self.gaps].double()]
        for column, count in self.categories.items():
            features.append((rows[:, column : column + 1] == torch.arange(count, device=rows.device)).double())
        return torch.cat(features, 1)


class LookUp(nn.Module):
    """Bytes of a text as tokens."""

    tokens: Tensor

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.register_buffer("tokens", tokens)

    def forward(self, rows: Tensor) -> Tensor:
        """uint8 ``[N, L]`` → int64 tokens ``[N, L]``."""
        return self.tokens[rows.long()]


class Rescale(nn.Module):
    """Answers ``[N, 1]`` of mean 0 and variance 1 as values ``[N]`` in the units of the training targets."""

    mean: Tensor
    std: Tensor

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        std = targets.double().std(correction=0)
        self.register_buffer("mean", targets.double().mean().float())
        self.register_buffer("std", torch.where(std > 0, std, 1.0).float())

    def forward(self, answers: Tensor) -> Tensor:
        """``[N, 1]`` → ``[N]``."""
        return answers.squeeze(-1) * self.std + self.mean


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows behind the splits: how a model reads them and answers, and what was found out about them."""

    read: nn.Module
    """Rows → inputs of the host."""
    example: Tensor
    """A few rows as they came."""
    meaning: str = "rows as the task has them"
    """What a row is, in words."""
    columns: list[dict[str, Any]] | None = None
    """Of a table: name, kind and categories of each column."""
    answer: nn.Module = field(default_factory=nn.Identity)
    """The host's output → the answer."""
    classes: list[Any] | None = None
    """Names of the classes, in the order of the logits; ``None`` where they are numbered."""
    notes: dict[str, str] = field(default_factory=dict)
    """What was inferred, and which option says otherwise."""
    drawn: dict[str, list[int]] = field(default_factory=dict)
    """Split → the places of its rows in the source, where the splits were drawn."""


class Served(nn.Module):
    """A network between rows as their owner has them and answers in the owner's units."""

    def __init__(self, rows: Rows, network: nn.Module) -> None:
        super().__init__()
        self.read = rows.read
        self.network = network
        self.answer = rows.answer

    def forward(self, rows: Tensor) -> Tensor:
        """Rows → class logits ``[N, ..., classes]`` or values ``[N]``."""
        return self.answer(self.network(self.read(rows)))


def manifest(rows: Rows, output: Tensor) -> dict[str, Any]:
    """What goes into an exported model and what comes out, as plain JSON data.

    Args:
        rows: The rows that the model reads.
        output: What it answers to them, for the shape and the type.
    """
    goes_in: dict[str, Any] = {"meaning": rows.meaning, **_form(rows.example)}
    if rows.columns is not None:
        goes_in["columns"] = rows.columns
    comes_out: dict[str, Any] = {"meaning": "values in the units of the targets", **_form(output)}
    if not isinstance(rows.answer, Rescale):
        comes_out["meaning"] = "one logit for each class: the answer is the class of the highest"
        comes_out["classes"] = list(range(output.shape[-1])) if rows.classes is None else rows.classes
    return {"format": 1, "input": goes_in, "output": comes_out}


def _form(tensor: Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["N", *tensor.shape[1:]]}
