"""A character-level language model over text that ships with CPython."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

from esper.tasks.base import Splits, Task, register_task
from esper.tasks.hosts import BLOCKS, scaled, token_host

LENGTH = 32
"""Characters in a sample."""
SAMPLES = (4000, 500, 500)
"""Training, validation and test samples."""
_RARE = "\N{REPLACEMENT CHARACTER}"
_RARE_BELOW = 20


@register_task
class CharLM(Task):
    """Predict the next character of Python's own help texts: 4,000 / 500 / 500 samples of 32 characters.

    The splits are consecutive stretches of one text, in this order. The texts, and so the scores, differ a little
    between versions of Python; compare runs of one version.
    """

    name = "charlm"
    description = "next character of Python's help texts, 32 characters a sample (pydoc_data.topics)"
    slots = BLOCKS
    causal = True

    def load(self) -> Splits:
        """Windows of 32 characters and, as targets, the characters that follow each."""
        windows = _tokens().unfold(0, LENGTH + 1, LENGTH)[: sum(SAMPLES)]
        x, y = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        (train_x, val_x, test_x), (train_y, val_y, test_y) = x.split(SAMPLES), y.split(SAMPLES)
        return Splits(train_x, train_y, val_x, val_y, test_x, test_y)

    def build_host(self, width: float = 1.0, depth: int = 1) -> nn.Module:
        """An embedding and three pointwise blocks of 16 channels: it sees only the latest character."""
        return token_host(self.splits().num_classes, scaled(16, width), depth)


@cache
def _tokens() -> Tensor:
    """The text as int64 tokens; white space is one blank, characters rare in the training stretch are one token."""
    text = " ".join(" ".join(topics[topic] for topic in sorted(topics)).split())
    training = Counter(text[: SAMPLES[0] * LENGTH])
    vocabulary = [_RARE, *sorted(char for char, count in training.items() if count >= _RARE_BELOW)]
    index = {char: token for token, char in enumerate(vocabulary)}
    return torch.tensor([index.get(char, 0) for char in text[: sum(SAMPLES) * LENGTH + 1]])
