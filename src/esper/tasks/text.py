"""Character-level language models over Python's own texts, which ship with Esper: every version reads the same."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from esper.tasks.hosts import BLOCKS, scaled, token_host
from esper.tasks.larger_hosts import causal_transformer
from esper.tasks.shipped import read_text
from esper.tasks.task import Splits, Task, register_task

_RARE = "\N{REPLACEMENT CHARACTER}"
_RARE_BELOW = 20


class CharacterTask(Task):
    """Predict the next character of a text.

    The splits are consecutive stretches of one text, in this order.
    """

    slots = BLOCKS
    causal = True

    text: str
    """Name of the shipped text; what is beyond the last sample is left out."""
    length: int
    """Characters in a sample."""
    samples: tuple[int, int, int]
    """Training, validation and test samples."""

    def load(self) -> Splits:
        """Windows of ``length`` characters and, as targets, the characters that follow each."""
        windows = self._tokens().unfold(0, self.length + 1, self.length)
        x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        (train_x, val_x, test_x), (train_y, val_y, test_y) = x.split(self.samples), y.split(self.samples)
        return Splits(train_x, train_y, val_x, val_y, test_x, test_y)

    def _tokens(self) -> Tensor:
        """The text as int64 tokens; characters rare in the training stretch are one token."""
        text = read_text(self.text)[: sum(self.samples) * self.length + 1]
        training = Counter(text[: self.samples[0] * self.length])
        vocabulary = [_RARE, *sorted(char for char, count in training.items() if count >= _RARE_BELOW)]
        index = {char: token for token, char in enumerate(vocabulary)}
        return torch.tensor([index.get(char, 0) for char in text])

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """An embedding and three pointwise blocks of 16 channels: it sees only the latest character."""
        return token_host(self.splits().num_classes, scaled(16, width), depth)


@register_task
class CharLM(CharacterTask):
    """Predict the next character of Python's own help texts: 4,000 / 500 / 500 samples of 32 characters."""

    name = "charlm"
    description = "next character of Python's help texts, 32 characters a sample (pydoc_data.topics)"
    text = "help.txt"
    length = 32
    samples = (4000, 500, 500)


@register_task
class CodeLM(CharacterTask):
    """Predict the next character of Python source code: 4,000 / 500 / 500 samples of 16 characters.

    The code is that of the standard library's module ``inspect``, with its comments, without its indentation.
    """

    name = "codelm"
    description = "next character of Python source code, 16 characters a sample (the module inspect)"
    batch_size = 32
    text = "inspect.py.txt"
    length = 16
    samples = (4000, 500, 500)


@register_task
class LibraryLM(CharacterTask):
    """Predict the next character of Python's standard library: 12,000 / 600 / 600 samples of 64 characters.

    The code is that of 18 modules, ``argparse`` to ``doctest``, one after the other; the last are the validation and
    test data.
    """

    name = "library_lm"
    description = "next character of Python's standard library, 64 characters a sample (18 modules)"
    horizon = 20
    steps_per_decision = 40
    batch_size = 32
    text = "library.py.txt"
    length = 64
    samples = (12000, 600, 600)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """A causal transformer of three blocks of 48 channels."""
        return causal_transformer(self.splits().num_classes, self.length, scaled(48, width), depth)
